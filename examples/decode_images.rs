//! Image files in; how each is decoded out: a line `width height` and the RGB pixels after it, or a line with the reason
//! of the rejection.
//!
//! ```text
//! cargo run --release --example decode_images FILE… >pixels
//! ```
//!
//! What `tests/consumers/hostile_images.py` compares with Pillow.

use std::io::{self, Write};

use superbatch::embed::image::decode;
use superbatch::read::Limits;

fn main() -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for path in std::env::args().skip(1) {
        match decode(&std::fs::read(&path)?, &Limits::default()) {
            Ok(image) => {
                writeln!(out, "{} {}", image.width(), image.height())?;
                out.write_all(image.as_raw())?;
            }
            Err(rejection) => writeln!(out, "{rejection}")?,
        }
    }
    out.flush()
}
