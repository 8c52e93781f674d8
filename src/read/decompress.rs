//! A shard's bytes in, the tar's bytes out: undoes `.gz` and `.zst`, and keeps apart corrupt bytes from
//! failing readers.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};

/// Whether the shard is an uncompressed tar, so that offsets in it are offsets in the stored file.
pub fn is_plain(shard: &str) -> bool {
    Compression::of(shard) == Compression::None
}

/// Decompresses a shard by the extension of its name: `.tar.gz`, `.tgz`, `.tar.zst`; everything else is taken
/// as it is.
///
/// # Errors
///
/// The returned reader gives the underlying reader's errors as they are. Bytes that do not decompress are a
/// property of the shard instead, and [`Samples`](super::Samples) makes a rejection of them.
///
/// # Memory
///
/// zstd windows over 128 MiB are refused (the library's default).
pub fn decompress(shard: &str, reader: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let source = Source(reader);
    Ok(match Compression::of(shard) {
        Compression::None => Box::new(source.0),
        Compression::Gzip => Box::new(Decompressed(flate2::read::MultiGzDecoder::new(source))),
        Compression::Zstd => Box::new(Decompressed(zstd::stream::read::Decoder::new(source)?)),
    })
}

/// Whether a read failed because the bytes do not decompress, rather than because they could not be fetched.
pub(super) fn is_corrupt(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Corrupt>())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(shard: &str) -> Compression {
        let name = shard.to_ascii_lowercase();
        match name.rsplit('.').next() {
            Some("gz" | "tgz") => Compression::Gzip,
            Some("zst" | "zstd" | "tzst") => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// The stored bytes; marks its errors so that they can be told from a decoder's.
struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, SourceFault(error)),
        })
    }
}

/// A decoder over a [`Source`]; an error that the source did not mark is the decoder's own.
struct Decompressed<D>(D);

impl<D: Read> Read for Decompressed<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            match error.downcast::<SourceFault>() {
                Ok(fault) => fault.0,
                Err(error) => io::Error::new(io::ErrorKind::InvalidData, Corrupt(error)),
            }
        })
    }
}

#[derive(Debug)]
struct SourceFault(io::Error);

impl fmt::Display for SourceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SourceFault {}

#[derive(Debug)]
struct Corrupt(io::Error);

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the compressed stream is corrupt: {}", self.0)
    }
}

impl Error for Corrupt {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(shard: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(shard, io::Cursor::new(bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn the_extension_says_how() {
        let text = b"some bytes of a tar".repeat(1000);
        assert_eq!(read_all("a/0.tar", text.clone()).unwrap(), text);
        assert_eq!(read_all("a/0.tar.gz", gzip(&text)).unwrap(), text);
        assert_eq!(read_all("a/0.TGZ", gzip(&text)).unwrap(), text);
        assert_eq!(read_all("0.tar.zst", zstd::encode_all(&text[..], 1).unwrap()).unwrap(), text);
        assert!(is_plain("0.tar") && !is_plain("0.tgz"));
    }

    #[test]
    fn cut_and_mangled_streams_are_corrupt() {
        let text: Vec<u8> =
            (0..40_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (shard, bytes) in [("0.tgz", gzip(&text)), ("0.tar.zst", zstd::encode_all(&text[..], 1).unwrap())]
        {
            let cut = bytes[..bytes.len() / 2].to_vec();
            assert!(is_corrupt(&read_all(shard, cut).unwrap_err()), "{shard} cut");
            let mut mangled = bytes;
            mangled[0] ^= 0xff;
            assert!(is_corrupt(&read_all(shard, mangled).unwrap_err()), "{shard} mangled");
        }
    }

    #[test]
    fn a_failing_reader_is_not_corruption() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "reset"))
            }
        }
        for shard in ["0.tar", "0.tgz", "0.tar.zst"] {
            let error = decompress(shard, Failing).unwrap().read(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{shard}");
            assert!(!is_corrupt(&error));
        }
    }
}
