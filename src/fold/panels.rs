//! Rows in, the same rows side by side out: component by component, as the registers take them.

use std::ops::Range;

use rayon::prelude::*;

use super::{GROUP_BYTES_MAX, TERMS_MAX};

/// Alignment of a register's load, in bytes: a cache line.
const LINE_BYTES: usize = 64;

/// Rows in panels of some registers' width, as even as they can be; rows that are missing to whole registers are 0.
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
    /// Registers' width of the widest panel.
    pub n_vectors: usize,
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
        let values = vec![T::default(); n_padded * depth + line];
        let offset = values.as_ptr().align_offset(LINE_BYTES).min(line);
        let mut panels = Panels { values, offset, rows, depth, shape };

        let mut taken = std::mem::take(&mut panels.values);
        let mut rest = &mut taken[offset..];
        let mut places = Vec::with_capacity(panels.n_panels());
        for panel_idx in 0..panels.n_panels() {
            let vectors = panels.vectors(panel_idx);
            let (panel, after) = rest.split_at_mut(vectors.len() * shape.lanes * depth);
            places.push((panels.rows_of(vectors), panel));
            rest = after;
        }
        places.into_par_iter().for_each_init(Vec::new, |row_after_row, (rows, panel)| {
            row_after_row.resize(rows.len() * depth, T::default());
            for (row, to) in rows.clone().zip(row_after_row.chunks_exact_mut(depth)) {
                copy(row, to);
            }
            transpose(row_after_row, depth, panel, panel.len() / depth);
        });
        panels.values = taken;
        panels
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Registers' widths of all rows.
    fn n_vectors(&self) -> usize {
        self.rows.len().div_ceil(self.shape.lanes)
    }

    fn n_panels(&self) -> usize {
        self.n_vectors().div_ceil(self.shape.n_vectors)
    }

    /// Which registers' widths a panel takes.
    fn vectors(&self, panel_idx: usize) -> Range<usize> {
        let first = |panel_idx: usize| panel_idx * self.n_vectors() / self.n_panels();
        first(panel_idx)..first(panel_idx + 1)
    }

    fn rows_of(&self, vectors: Range<usize>) -> Range<usize> {
        let row = |vector: usize| self.rows.end.min(self.rows.start + vector * self.shape.lanes);
        row(vectors.start)..row(vectors.end)
    }

    /// The panel that holds a row.
    fn panel_of(&self, row: usize) -> usize {
        let vector = (row - self.rows.start) / self.shape.lanes;
        ((vector + 1) * self.n_panels() - 1) / self.n_vectors()
    }

    pub fn panel(&self, panel_idx: usize) -> Panel<'_, T> {
        let vectors = self.vectors(panel_idx);
        let values = |n_vectors: usize| n_vectors * self.shape.lanes * self.depth;
        Panel {
            values: &self.values[self.offset + values(vectors.start)..][..values(vectors.len())],
            n_vectors: vectors.len(),
            rows: self.rows_of(vectors),
        }
    }

    /// The panels that hold these rows, in groups that stay in cache together.
    pub fn groups(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end, "rows that are packed");
        let panels =
            if rows.is_empty() { 0..0 } else { self.panel_of(rows.start)..self.panel_of(rows.end - 1) + 1 };
        let panel_bytes = self.shape.n_vectors * self.shape.lanes * self.depth * size_of::<T>();
        let n = (GROUP_BYTES_MAX / panel_bytes).clamp(1, TERMS_MAX / self.shape.n_vectors);
        panels.clone().step_by(n).map(move |start| start..panels.end.min(start + n))
    }
}

/// Sets `panel[component, row] = rows[row, component]`, some components at a time, so that the lines of the panel that
/// are written stay in cache until they are full.
fn transpose<T: Copy>(rows: &[T], depth: usize, panel: &mut [T], width: usize) {
    const N_COMPONENTS: usize = 16;
    for (block_idx, block) in panel.chunks_mut(N_COMPONENTS * width).enumerate() {
        for (lane, row) in rows.chunks_exact(depth).enumerate() {
            let components = &row[block_idx * N_COMPONENTS..];
            for (to, value) in block[lane..].iter_mut().step_by(width).zip(components) {
                *to = *value;
            }
        }
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
        let mut masks = [without_row; M];
        for (mask, column) in masks.iter_mut().zip(columns) {
            *mask |= left_out(column, self.rows.clone());
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_in_the_panel_that_is_said_to_hold_it() {
        for (lanes, n_vectors) in [(1, 2), (8, 2), (16, 3)] {
            for n_rows in (1..200).chain([256, 1000]) {
                let shape = Shape { lanes, n_vectors };
                let copy = |row: usize, to: &mut [f32]| {
                    to.iter_mut().enumerate().for_each(|(at, to)| *to = (row * 100 + at) as f32);
                };
                let panels = Panels::new(30..30 + n_rows, 19, shape, copy);
                let mut next = 30;
                for panel_idx in 0..panels.n_panels() {
                    let panel = panels.panel(panel_idx);
                    assert!((1..=n_vectors).contains(&panel.n_vectors));
                    assert_eq!(panel.rows.start, next);
                    for (lane, row) in panel.rows.clone().enumerate() {
                        assert_eq!(panels.panel_of(row), panel_idx);
                        for component in 0..19 {
                            let value = panel.values[component * panel.values.len() / 19 + lane];
                            assert_eq!(value, (row * 100 + component) as f32);
                        }
                    }
                    next = panel.rows.end;
                }
                assert_eq!(next, 30 + n_rows);
                let grouped: Vec<usize> = panels.groups(30..30 + n_rows).flatten().collect();
                assert_eq!(grouped, (0..panels.n_panels()).collect::<Vec<_>>());
                assert_eq!(panels.groups(31..31).count(), 0);
            }
        }
    }
}
