//! NumPy's `.npy` files in, matrices of f32 out; and the header with which such a file begins.
//!
//! The format is a line of header and the plain values; a crate for it would bring a parser generator along.

use std::io::{self, Read, Seek, Write};

use half::f16;

use crate::matrix::Matrix;

/// Values that a matrix may have at most: 16 GiB of f32.
const VALUES_MAX: u64 = 1 << 32;

/// Values that a row may have at most, far above any embedding.
const COLUMNS_MAX: u64 = 1 << 24;

/// Bytes that a header may have at most; NumPy's own are below 200.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// Bytes before the header's text: the magic string, the version, the length.
const PREFIX_BYTES: usize = 10;

/// Why a file is not a matrix of numbers that can be used.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error("it is not a NumPy file of format version 1 to 3")]
    Format,
    #[error("it cannot be read, or ends early")]
    Read(#[source] std::io::Error),
    #[error("its shape is {shape:?}, but must be [n, d] with n and d above 0")]
    Shape { shape: Vec<u64> },
    #[error("its values are `{dtype}`, but must be little-endian f16, f32 or f64 in rows")]
    Type { dtype: String },
    #[error("its rows have {found} values, but the model's embeddings have {expected}")]
    Width { found: usize, expected: usize },
    #[error("it is no archive with an array `{array}`")]
    Array { array: String },
    #[error("its row {row} holds NaN or infinity or has length 0")]
    Degenerate { row: usize },
}

/// Reads a matrix `[n, d]` of f16, f32 or f64.
///
/// # Errors
///
/// Another shape or type of value, and a file that ends before its last value. Memory grows with the values that
/// arrive, not with the shape that the header claims.
///
/// # Source
///
/// NumPy Enhancement Proposal 1.
pub fn read_matrix(reader: impl Read) -> Result<Matrix, NpyError> {
    let mut rows = Rows::open(reader)?;
    let n_values = rows.n_rows.checked_mul(rows.n_cols as u64);
    match n_values {
        Some(1..=VALUES_MAX) => rows.next_rows(rows.n_rows as usize),
        _ => Err(NpyError::Shape { shape: vec![rows.n_rows, rows.n_cols as u64] }),
    }
}

/// The rows of a file, one run after another.
pub struct Rows<R> {
    reader: R,
    kind: ValueKind,
    n_rows: u64,
    n_cols: usize,
    n_read: u64,
}

#[derive(Clone, Copy)]
enum ValueKind {
    F16,
    F32,
    F64,
}

impl<R: Read> Rows<R> {
    /// Reads the header of a matrix `[n, d]` of f16, f32 or f64.
    pub fn open(mut reader: R) -> Result<Rows<R>, NpyError> {
        let header = read_header(&mut reader)?;
        let entry = |key: &str| entry(&header, key).ok_or(NpyError::Format);
        let dtype = entry("descr")?.trim_matches(['\'', '"']).to_owned();
        if entry("fortran_order")? != "False" {
            return Err(NpyError::Type { dtype: format!("{dtype} in columns") });
        }
        let sides = entry("shape")?.trim_matches(['(', ')']).split(',').map(str::trim);
        let sides =
            sides.filter(|side| !side.is_empty()).map(|side| side.parse().map_err(|_| NpyError::Format));
        let shape: Vec<u64> = sides.collect::<Result<_, _>>()?;
        let (n_rows, n_cols) = match shape[..] {
            [n_rows @ 1..=u64::MAX, n_cols @ 1..=COLUMNS_MAX] => (n_rows, n_cols as usize),
            _ => return Err(NpyError::Shape { shape }),
        };
        let kind = match dtype.as_str() {
            "<f2" => ValueKind::F16,
            "<f4" => ValueKind::F32,
            "<f8" => ValueKind::F64,
            _ => return Err(NpyError::Type { dtype }),
        };
        Ok(Rows { reader, kind, n_rows, n_cols, n_read: 0 })
    }

    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The next rows, at most so many; none after the last.
    pub fn next_rows(&mut self, n_max: usize) -> Result<Matrix, NpyError> {
        let n = (self.n_rows - self.n_read).min(n_max as u64) as usize;
        let n_values = n * self.n_cols;
        let reader = &mut self.reader;
        let values = match self.kind {
            ValueKind::F16 => read_values(reader, n_values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            ValueKind::F32 => read_values(reader, n_values, f32::from_le_bytes),
            ValueKind::F64 => read_values(reader, n_values, |bytes| f64::from_le_bytes(bytes) as f32),
        };
        self.n_read += n as u64;
        Ok(Matrix::new(values?, self.n_cols))
    }
}

/// Hands on the rows of a `.npy` file, or of an array of a `.npz` file, which is an archive of such files.
pub fn with_array<T>(
    file: impl Read + Seek,
    array: Option<&str>,
    read: impl FnOnce(&mut Rows<&mut dyn Read>) -> Result<T, NpyError>,
) -> Result<T, NpyError> {
    let Some(array) = array else {
        let mut file = file;
        return read(&mut Rows::open(&mut file as &mut dyn Read)?);
    };
    let missing = |_| NpyError::Array { array: array.to_owned() };
    let mut archive = zip::ZipArchive::new(file).map_err(missing)?;
    let mut member = archive.by_name(&format!("{array}.npy")).map_err(missing)?;
    read(&mut Rows::open(&mut member as &mut dyn Read)?)
}

/// Writes what stands before the values of a file: little-endian values of a NumPy type, in rows, are to follow.
///
/// `descr` is the type as NumPy states it, such as `'<f2'`. The values start at a multiple of 64 bytes, so that the file can
/// be memory-mapped.
///
/// # Source
///
/// NumPy Enhancement Proposal 1, format version 1.0.
pub fn write_header(writer: &mut impl Write, descr: &str, shape: &[u64]) -> io::Result<()> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    // a tuple of one ends in a comma, one of more does not
    let sides = if shape.len() > 1 { sides.trim_end_matches(", ") } else { sides.trim_end() };
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({sides}), }}");
    let padded = (PREFIX_BYTES + header.len() + 1).next_multiple_of(64) - PREFIX_BYTES;
    let length = u16::try_from(padded).expect("types and shapes are short");
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&length.to_le_bytes())?;
    writeln!(writer, "{header:<width$}", width = padded - 1)
}

/// The header's text, a Python dictionary.
fn read_header(reader: &mut impl Read) -> Result<String, NpyError> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(NpyError::Read)?;
    let n_length_bytes = match start {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _] => 2,
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _] => 4,
        _ => return Err(NpyError::Format),
    };
    let mut length = [0; 4];
    reader.read_exact(&mut length[..n_length_bytes]).map_err(NpyError::Read)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(NpyError::Format);
    }
    let mut header = vec![0; length];
    reader.read_exact(&mut header).map_err(NpyError::Read)?;
    String::from_utf8(header).map_err(|_| NpyError::Format)
}

/// The value of a key: up to the comma that is in no parentheses, or to the end of the dictionary.
fn entry<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    let after = header.split_once(&format!("'{key}':"))?.1.trim_start();
    let mut depth = 0;
    let end = after.find(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(letter, ',' | '}')
    });
    Some(after[..end?].trim())
}

fn read_values<const N: usize>(
    reader: impl Read,
    n_values: usize,
    value: impl Fn([u8; N]) -> f32,
) -> Result<Vec<f32>, NpyError> {
    let mut bytes = Vec::new();
    reader.take((n_values * N) as u64).read_to_end(&mut bytes).map_err(NpyError::Read)?;
    if bytes.len() < n_values * N {
        return Err(NpyError::Read(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As NumPy writes it: `np.save` of a matrix.
    fn file(header: &str, values: &[u8]) -> Vec<u8> {
        let padded = format!("{header:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((padded.len() as u16).to_le_bytes());
        bytes.extend(padded.as_bytes());
        bytes.extend(values);
        bytes
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn matrices_of_floats_are_read() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let matrix = read_matrix(&file(header, &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))[..]).unwrap();
        assert_eq!((matrix.n_rows(), matrix.row(1)), (2, &[4.0, 5.0, 6.0][..]));
        let halves: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let header = "{'descr': '<f2', 'fortran_order': False, 'shape': (1, 2), }";
        assert_eq!(read_matrix(&file(header, &halves)[..]).unwrap().values(), [0.5, -2.0]);
    }

    #[test]
    fn headers_are_those_of_numpy() {
        let written = |descr: &str, shape: &[u64]| {
            let mut bytes = Vec::new();
            write_header(&mut bytes, descr, shape).unwrap();
            bytes
        };
        // np.save(f, np.zeros((2, 3), "f2")) and np.save(f, np.zeros(5, "u8,u8")), up to the values
        assert_eq!(
            written("'<f2'", &[2, 3]),
            file("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }", &[])
        );
        assert_eq!(
            written("[('f0', '<u8'), ('f1', '<u8')]", &[5]),
            file("{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (5,), }", &[])
        );
    }

    #[test]
    fn other_files_are_refused() {
        let values = floats(&[0.0; 6]);
        let refused = |header: &str, values: &[u8]| read_matrix(&file(header, values)[..]).unwrap_err();
        let header = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        for shape in ["(6,)", "()", "(0, 3)", "(3, 0)", "(1, 2, 3)", "(4294967296, 4294967296)"] {
            assert!(matches!(refused(&header(shape), &values), NpyError::Shape { .. }), "{shape}");
        }
        assert!(matches!(refused(&header("(-1, 3)"), &values), NpyError::Format));
        assert!(matches!(refused(&header("(2, 3)"), &values[..20]), NpyError::Read(_)));
        assert!(matches!(refused(&header("(2, 3)").replace("<f4", "<i4"), &values), NpyError::Type { .. }));
        assert!(matches!(
            refused(&header("(2, 3)").replace("False", "True"), &values),
            NpyError::Type { .. }
        ));
        assert!(matches!(read_matrix(&b"PK\x03\x04 no NumPy file"[..]), Err(NpyError::Format)));
        assert!(matches!(read_matrix(&b""[..]), Err(NpyError::Read(_))));
    }
}
