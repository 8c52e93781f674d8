//! Embeddings in memory: a row-major matrix of f32, one row a sample.

/// `[n_rows, n_cols]`, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    values: Vec<f32>,
    n_cols: usize,
}

impl Matrix {
    /// Takes the values of whole rows.
    pub fn new(values: Vec<f32>, n_cols: usize) -> Matrix {
        assert!(
            n_cols > 0 && values.len().is_multiple_of(n_cols),
            "{} values in rows of {n_cols}",
            values.len()
        );
        Matrix { values, n_cols }
    }

    pub fn zeros(n_rows: usize, n_cols: usize) -> Matrix {
        Matrix::new(vec![0.0; n_rows * n_cols], n_cols)
    }

    pub fn n_rows(&self) -> usize {
        self.values.len().checked_div(self.n_cols).unwrap_or(0)
    }

    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.n_cols..(row + 1) * self.n_cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.n_cols..(row + 1) * self.n_cols]
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn push_row(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.n_cols);
        self.values.extend_from_slice(row);
    }

    /// Adds the rows of another matrix after these. One that is empty by default takes the other's width.
    pub fn append(&mut self, other: &Matrix) {
        if self.n_cols == 0 {
            self.n_cols = other.n_cols;
        }
        assert_eq!(other.n_cols, self.n_cols);
        self.values.extend_from_slice(&other.values);
    }

    /// The rows at these positions, in this order.
    pub fn gather(&self, rows: &[usize]) -> Matrix {
        let mut values = Vec::with_capacity(rows.len() * self.n_cols);
        for &row in rows {
            values.extend_from_slice(self.row(row));
        }
        Matrix::new(values, self.n_cols)
    }
}

/// The rows scaled to unit length.
///
/// # Panics
///
/// A row without direction.
pub fn unit_rows(mut rows: Matrix) -> Matrix {
    for row in 0..rows.n_rows() {
        let inverse_length = inverse_length(rows.row(row));
        rows.row_mut(row).iter_mut().for_each(|value| *value *= inverse_length);
    }
    rows
}

/// `1 / length` of a row.
///
/// # Panics
///
/// A row without direction.
pub fn inverse_length(row: &[f32]) -> f32 {
    let inverse_length = dot(row, row).sqrt().recip();
    assert!(inverse_length.is_finite(), "an embedding without direction");
    inverse_length
}

/// The inner product of two rows of the same length, summed in f32 in eight fixed lanes.
pub fn dot(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    let mut lanes = [0.0f32; 8];
    let (left_blocks, left_rest) = left.as_chunks::<8>();
    let (right_blocks, right_rest) = right.as_chunks::<8>();
    for (l, r) in left_blocks.iter().zip(right_blocks) {
        for lane in 0..8 {
            lanes[lane] += l[lane] * r[lane];
        }
    }
    for (lane, (l, r)) in left_rest.iter().zip(right_rest).enumerate() {
        lanes[lane] += l * r;
    }
    lanes.iter().sum()
}
