//! Rows in, the same rows side by side out: component by component, as the registers take them.

use std::ops::Range;

use rayon::prelude::*;

use super::{GROUP_BYTES_MAX, TERMS_MAX};

/// Alignment of a register's load, in bytes: a cache line.
const LINE_BYTES: usize = 64;

/// Rows in panels of some registers' width, the last one narrower; rows that are missing to whole registers are 0.
pub struct Panels<T> {
    /// Panel after panel, `[depth, width]` each, from `offset` on.
    values: Vec<T>,
    offset: usize,
    /// Numbers of the rows.
    rows: Range<usize>,
    /// Components of a row.
    depth: usize,
    shape: Shape,
}

/// What fits the processor's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Values in a register.
    pub lanes: usize,
    /// Registers' width of a panel.
    pub n_vectors: usize,
}

impl Shape {
    /// Rows of a panel.
    fn width(self) -> usize {
        self.lanes * self.n_vectors
    }
}

/// Some rows side by side: `values` is `[depth, n_vectors · lanes]`.
pub struct Panel<'a, T> {
    pub values: &'a [T],
    pub n_vectors: usize,
    rows: Range<usize>,
}

impl<T: Copy + Default + Send + Sync> Panels<T> {
    /// `copy(row, to)` writes the components of a row.
    pub fn new(
        rows: Range<usize>,
        depth: usize,
        shape: Shape,
        copy: impl Fn(usize, &mut [T]) + Sync,
    ) -> Panels<T> {
        let n_padded = rows.len().next_multiple_of(shape.lanes);
        let line = LINE_BYTES / size_of::<T>();
        let mut values = vec![T::default(); n_padded * depth + line];
        let offset = values.as_ptr().align_offset(LINE_BYTES).min(line);
        let panel_width = shape.width();
        values[offset..][..n_padded * depth].par_chunks_mut(panel_width * depth).enumerate().for_each_init(
            || vec![T::default(); depth],
            |row_values, (panel_idx, panel)| {
                let width = panel.len() / depth;
                let first = rows.start + panel_idx * panel_width;
                for (lane, row) in (first..rows.end.min(first + width)).enumerate() {
                    copy(row, row_values);
                    for (to, value) in panel[lane..].iter_mut().step_by(width).zip(&*row_values) {
                        *to = *value;
                    }
                }
            },
        );
        Panels { values, offset, rows, depth, shape }
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn panel(&self, panel_idx: usize) -> Panel<'_, T> {
        let first = panel_idx * self.shape.width();
        let n_vectors = (self.rows.len() - first).div_ceil(self.shape.lanes).min(self.shape.n_vectors);
        let width = n_vectors * self.shape.lanes;
        let values = &self.values[self.offset + first * self.depth..][..width * self.depth];
        let start = self.rows.start + first;
        Panel { values, n_vectors, rows: start..self.rows.end.min(start + width) }
    }

    /// The panels that hold these rows, in groups that stay in cache together.
    pub fn groups(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end, "rows that are packed");
        let width = self.shape.width();
        let first = (rows.start - self.rows.start) / width;
        let end = if rows.is_empty() { first } else { (rows.end - self.rows.start).div_ceil(width) };
        let panel_bytes = width * self.depth * size_of::<T>();
        let n = (GROUP_BYTES_MAX / panel_bytes).clamp(1, TERMS_MAX / self.shape.n_vectors);
        (first..end).step_by(n).map(move |start| start..end.min(start + n))
    }
}

impl<T> Panel<'_, T> {
    /// Which lanes do not count for each column: those left out and those without a row.
    #[inline(always)]
    pub fn masks<const M: usize>(
        &self,
        columns: [usize; M],
        left_out: impl Fn(usize, Range<usize>) -> u64,
    ) -> [u64; M] {
        let without_row = u64::MAX.checked_shl(self.rows.len() as u32).unwrap_or(0);
        columns.map(|column| left_out(column, self.rows.clone()) | without_row)
    }
}
