//! Rows in, runs of them out that a device's memory has room for.

use std::ops::Range;

use super::session::is_out_of_memory;

/// Calls `run` on runs of at most `rows_max` of `n` rows, in order. Where a device's memory does not do for a run, the
/// run is halved, and later runs are no longer than that; a single row that does not fit is an error.
///
/// `runtime_fault` tells what the runtime said, where an error comes from it.
pub fn in_pieces<T, E>(
    n: usize,
    rows_max: &mut usize,
    runtime_fault: impl Fn(&E) -> Option<&ort::Error>,
    mut run: impl FnMut(Range<usize>) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut pieces = Vec::with_capacity(n.div_ceil(*rows_max));
    let mut start = 0;
    while start < n {
        let rows = start..n.min(start + *rows_max);
        let n_rows = rows.len();
        match run(rows.clone()) {
            Ok(piece) => {
                pieces.push(piece);
                start = rows.end;
            }
            Err(error) => match runtime_fault(&error) {
                Some(source) if n_rows > 1 && is_out_of_memory(source) => {
                    *rows_max = n_rows.div_ceil(2);
                    tracing::warn!(n_rows, rows_max, error = %source, "the device's memory does not do: halving the batch");
                }
                _ => return Err(error),
            },
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::library;

    fn pieces<T>(
        n: usize,
        rows_max: &mut usize,
        run: impl FnMut(Range<usize>) -> ort::Result<T>,
    ) -> ort::Result<Vec<T>> {
        library::load().unwrap();
        in_pieces(n, rows_max, |source: &ort::Error| Some(source), run)
    }

    fn out_of_memory() -> ort::Error {
        ort::Error::new("Failed to allocate memory for requested buffer of size 8589934592")
    }

    #[test]
    fn want_of_memory_halves_the_batch_and_loses_no_row() {
        let (mut rows_max, mut tried) = (64, Vec::new());
        let found = pieces(100, &mut rows_max, |rows| {
            tried.push(rows.len());
            if rows.len() > 20 { Err(out_of_memory()) } else { Ok(rows) }
        });
        assert_eq!(found.unwrap(), [0..16, 16..32, 32..48, 48..64, 64..80, 80..96, 96..100]);
        assert_eq!(tried[..3], [64, 32, 16]);
        // what did not fit once is not tried again
        assert_eq!(rows_max, 16);
    }

    #[test]
    fn a_row_that_does_not_fit_and_other_faults_are_errors() {
        let mut rows_max = 8;
        let mut n_tried = 0;
        let failed = pieces(8, &mut rows_max, |_| -> ort::Result<()> {
            n_tried += 1;
            Err(out_of_memory())
        });
        assert!(failed.is_err());
        assert_eq!((n_tried, rows_max), (4, 1));
        let mut rows_max = 8;
        let failed = pieces(8, &mut rows_max, |_| -> ort::Result<()> {
            Err(ort::Error::new("Got invalid dimensions for input"))
        });
        assert!(failed.is_err());
        assert_eq!(rows_max, 8);
    }
}
