//! NumPy's `.npy` files in, matrices of f32 out.

use std::io::Read;

use npyz::{DType, NpyFile, Order};

use crate::matrix::Matrix;

/// Values that a matrix may have at most: 16 GiB of f32.
const VALUES_MAX: u64 = 1 << 32;

/// Why a file is not a matrix of numbers that can be used.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error("it is not a NumPy file, or it ends early")]
    Read(#[source] std::io::Error),
    #[error("its shape is {shape:?}, but must be [n, d] with n and d above 0")]
    Shape { shape: Vec<u64> },
    #[error("its values are of type `{dtype}`, but must be little-endian f16, f32 or f64 in rows")]
    Type { dtype: String },
    #[error("its rows have {found} values, but the model's embeddings have {expected}")]
    Width { found: usize, expected: usize },
    #[error("its row {row} holds NaN or infinity or has length 0")]
    Degenerate { row: usize },
}

/// Reads a matrix `[n, d]` of f16, f32 or f64.
///
/// # Errors
///
/// Another shape or type of value, and a file that ends before its last value; nothing is allocated on the word of
/// the header beyond 2³² values.
pub fn read_matrix(reader: impl Read) -> Result<Matrix, NpyError> {
    let file = NpyFile::new(reader).map_err(NpyError::Read)?;
    let shape = file.shape().to_vec();
    let n_values = shape.iter().try_fold(1u64, |n, &side| n.checked_mul(side));
    let n_cols = match (&shape[..], n_values) {
        ([1.., n_cols @ 1..], Some(..=VALUES_MAX)) => *n_cols as usize,
        _ => return Err(NpyError::Shape { shape }),
    };
    let dtype = file.dtype();
    let name = match &dtype {
        DType::Plain(plain) if file.order() == Order::C => plain.to_string(),
        other => other.descr(),
    };
    let values: std::io::Result<Vec<f32>> = match name.as_str() {
        "<f2" => file.data::<half::f16>().map(|data| data.map(|value| value.map(f32::from)).collect()),
        "<f4" => file.data::<f32>().map(|data| data.collect()),
        "<f8" => file.data::<f64>().map(|data| data.map(|value| value.map(|value| value as f32)).collect()),
        _ => return Err(NpyError::Type { dtype: name }),
    }
    .map_err(|_| NpyError::Type { dtype: name.clone() })?;
    Ok(Matrix::new(values.map_err(NpyError::Read)?, n_cols))
}
