//! The samples of one cluster in; which of them are semantic duplicates, and of which, out.

use std::convert::Infallible;
use std::ops::Range;

use multiversion::multiversion;

use crate::matrix::{Matrix, unit_rows};
use crate::noise::SampleId;
use crate::tile::{TALL, TILE, Tile, map_strips, tall_ranges};

/// Finds the semantic duplicates of a cluster by SemDeDup: for each row, the row that it duplicates.
///
/// ```text
/// order:     least similarity to the centroid first, ties by sample id
/// duplicate: j with some i before it in the order, itself a duplicate or not, such that cos(i, j) > 1 − ε
/// ```
///
/// The row that is named is the most similar of those before it, the earliest on a tie: the one that a user
/// wants to see beside it. A sample far from the centroid is kept, the typical one goes. High ε takes out more;
/// at 0 nothing is taken out, as no cosine is above 1.
///
/// # Shapes and units
///
/// `images` is `[n, d]`, rows of about unit length (each is scaled to unit length); `ids` and
/// `centroid_similarities` have n values. Cosines in f32: pairs within about 1e-6 of the threshold may fall on
/// either side. Work: n²·d FLOPs. Memory: a copy of the images, and one tile a thread; [`semdedup_in_blocks`] needs
/// less.
///
/// # Panics
///
/// ε outside 0..=2, or an image without direction.
///
/// # Source
///
/// SemDeDup, arXiv:2303.09540, Algorithm 1 (the upper triangle of the sorted similarities, its largest value a
/// column).
///
/// # Example
///
/// At ε = 0.1, of three images at 0°, 20° and 40° on a circle, farthest from the centroid first: cos 20° = 0.94
/// makes the second a duplicate of the first and the third one of the second, though the second is out
/// itself.
pub fn semdedup(
    ids: &[SampleId],
    images: &Matrix,
    centroid_similarities: &[f32],
    epsilon: f64,
) -> Vec<Option<usize>> {
    assert_eq!(images.n_rows(), ids.len(), "one image a sample");
    let order = least_similar_first(ids, centroid_similarities);
    let read = |rows: &[usize]| Ok::<_, Infallible>(images.gather(rows));
    let Ok(found) = semdedup_in_blocks(&order, epsilon, usize::MAX, read);
    found
}

/// The order of [`semdedup`]: rows by similarity to the centroid, the least first, ties by sample id.
pub fn least_similar_first(ids: &[SampleId], centroid_similarities: &[f32]) -> Vec<usize> {
    assert_eq!(centroid_similarities.len(), ids.len(), "one similarity a sample");
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by(|left, right| {
        let similarities = centroid_similarities[*left].total_cmp(&centroid_similarities[*right]);
        similarities.then(ids[*left].cmp(&ids[*right]))
    });
    order
}

/// [`semdedup`] of images that are read when they are needed, for clusters that do not fit into memory.
///
/// `order` is that of [`least_similar_first`]; `read` gives the images of some rows, in their order, `[n_rows, d]`. Blocks
/// of the order have about `block_size` rows, a multiple of [`TALL`]. Each block meets those before it, so that every
/// tile has the place that it has without blocks: the result is the same bytes for any size.
///
/// Memory: two blocks, and one tile a thread. With k blocks, `read` is asked for k(k + 1)/2 of them.
///
/// # Errors
///
/// Those of `read`.
pub fn semdedup_in_blocks<E>(
    order: &[usize],
    epsilon: f64,
    block_size: usize,
    read: impl Fn(&[usize]) -> Result<Matrix, E>,
) -> Result<Vec<Option<usize>>, E> {
    assert!((0.0..=2.0).contains(&epsilon), "ε = {epsilon}");
    let mut duplicates = vec![None; order.len()];
    let threshold = (1.0 - epsilon) as f32;
    if threshold >= 1.0 {
        return Ok(duplicates);
    }
    let block_size = (block_size / TALL).max(1) * TALL;
    for (block_idx, block) in order.chunks(block_size).enumerate() {
        let columns = unit_rows(read(block)?);
        let mut strips = vec![MostSimilarBefore::new(threshold); block.len().div_ceil(TILE)];
        for (earlier_idx, earlier) in order.chunks(block_size).take(block_idx).enumerate() {
            let rows = unit_rows(read(earlier)?);
            strips = map_strips(block.len(), |tile: &mut Tile, strip| {
                let mut before = strips[strip.start / TILE].clone();
                for range in tall_ranges(rows.n_rows()) {
                    tile.fill(&rows, range.clone(), &columns, strip.clone());
                    see_rows(&mut before, tile, earlier_idx * block_size + range.start);
                }
                before
            });
        }
        strips = map_strips(block.len(), |tile: &mut Tile, strip| {
            let mut before = strips[strip.start / TILE].clone();
            for range in tall_ranges(strip.end) {
                tile.fill(&columns, range.clone(), &columns, strip.clone());
                if range.end > strip.start {
                    mask_not_before(tile, &range, &strip);
                }
                see_rows(&mut before, tile, block_idx * block_size + range.start);
            }
            before
        });
        let places = strips.iter().flat_map(|before| before.places);
        for (&row, place) in block.iter().zip(places) {
            duplicates[row] = (place != NONE).then(|| order[place as usize]);
        }
    }
    Ok(duplicates)
}

/// No row before it is similar enough.
const NONE: u32 = u32::MAX;

/// For each column of a strip, the most similar row so far that is above the threshold.
#[derive(Clone)]
struct MostSimilarBefore {
    similarities: [f32; TILE],
    places: [u32; TILE],
}

impl MostSimilarBefore {
    fn new(threshold: f32) -> MostSimilarBefore {
        MostSimilarBefore { similarities: [threshold; TILE], places: [NONE; TILE] }
    }
}

/// Takes out of a tile what does not stand before its column in the order.
fn mask_not_before(tile: &mut Tile, rows: &Range<usize>, columns: &Range<usize>) {
    for row in rows.start.max(columns.start)..rows.end {
        for column in columns.start..columns.end.min(row + 1) {
            tile.set(row - rows.start, column - columns.start, f32::NEG_INFINITY);
        }
    }
}

#[multiversion(targets = "simd")]
fn see_rows(before: &mut MostSimilarBefore, tile: &Tile, first_place: usize) {
    for row in 0..tile.n_rows() {
        let place = (first_place + row) as u32;
        let kept = before.similarities.iter_mut().zip(&mut before.places);
        for (similarity, (most, most_place)) in tile.row(row).iter().zip(kept) {
            let is_more = *similarity > *most;
            *most = if is_more { *similarity } else { *most };
            *most_place = if is_more { place } else { *most_place };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;
    use crate::tile::random_unit_rows;

    fn ids(n: u64) -> Vec<SampleId<'static>> {
        (0..n).map(|sample_idx| SampleId { shard: "s", sample_idx }).collect()
    }

    fn on_circle(degrees: &[f32]) -> Matrix {
        Matrix::new(
            degrees.iter().flat_map(|angle| [angle.to_radians().cos(), angle.to_radians().sin()]).collect(),
            2,
        )
    }

    #[test]
    fn the_example_by_hand() {
        let images = on_circle(&[0.0, 20.0, 41.0]);
        let found = |similarities: &[f32], epsilon| semdedup(&ids(3), &images, similarities, epsilon);
        assert_eq!(found(&[0.1, 0.2, 0.3], 0.1), [None, Some(0), Some(1)]);
        assert_eq!(found(&[0.1, 0.3, 0.2], 0.1), [None, Some(0), None]);
        assert_eq!(found(&[0.3, 0.3, 0.3], 0.1), [None, Some(0), Some(1)]);
        assert_eq!(found(&[0.3, 0.2, 0.1], 0.06), [None; 3]);
        assert_eq!(found(&[0.3, 0.2, 0.1], 0.061), [Some(1), None, None]);
    }

    #[test]
    fn exact_copies_name_the_first_by_id() {
        let images = on_circle(&[10.0, 10.0, 10.0]);
        let ids: Vec<SampleId> = [7, 2, 5].map(|sample_idx| SampleId { shard: "s", sample_idx }).to_vec();
        assert_eq!(semdedup(&ids, &images, &[0.5; 3], 1e-3), [Some(1), None, Some(1)]);
        assert_eq!(semdedup(&ids, &images, &[0.5; 3], 0.0), [None; 3]);
        assert_eq!(semdedup(&[], &Matrix::zeros(0, 2), &[], 0.1), [None; 0]);
    }

    #[test]
    fn permuted_samples_have_permuted_duplicates_on_any_number_of_threads() {
        let n = 700;
        let images = random_unit_rows(n, 6, 3);
        let similarities: Vec<f32> = (0..n).map(|row| (row * 37 % 101) as f32 / 101.0).collect();
        let all_ids = ids(n as u64);
        let with_threads = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| semdedup(&all_ids, &images, &similarities, 0.1))
        };
        let found = with_threads(1);
        assert_eq!(found, with_threads(3));
        assert!((100..600).contains(&found.iter().flatten().count()));

        let permutation: Vec<usize> = (0..n).map(|row| row * 13 % n).collect();
        let permuted_ids: Vec<SampleId> = permutation.iter().map(|row| all_ids[*row]).collect();
        let permuted_similarities: Vec<f32> = permutation.iter().map(|row| similarities[*row]).collect();
        let permuted = semdedup(&permuted_ids, &images.gather(&permutation), &permuted_similarities, 0.1);
        for (row, duplicate) in permuted.iter().enumerate() {
            assert_eq!(duplicate.map(|other| permutation[other]), found[permutation[row]]);
        }
    }

    #[test]
    fn any_size_of_blocks_finds_the_same_and_holds_no_more_than_one() {
        let n = 2 * TALL + 300;
        let images = random_unit_rows(n, 5, 4);
        let similarities: Vec<f32> = (0..n).map(|row| (row * 37 % 101) as f32 / 101.0).collect();
        let ids = ids(n as u64);
        let whole = semdedup(&ids, &images, &similarities, 0.01);
        let order = least_similar_first(&ids, &similarities);
        for block_size in [1, TALL, 2 * TALL + 1, n] {
            let blocks = RefCell::new(Vec::new());
            let read = |rows: &[usize]| {
                blocks.borrow_mut().push(rows.len());
                Ok::<_, Infallible>(images.gather(rows))
            };
            let Ok(found) = semdedup_in_blocks(&order, 0.01, block_size, read);
            assert!(found == whole, "blocks of {block_size}");
            let size_max = block_size.max(TALL);
            assert!(blocks.borrow().iter().all(|size| *size <= size_max), "{blocks:?} of {block_size}");
        }
        // across the blocks too
        let place: HashMap<usize, usize> = order.iter().copied().zip(0..).collect();
        let is_across = |(row, other): (usize, &Option<usize>)| {
            other.is_some_and(|other| place[&row] >= TALL && place[&other] < TALL)
        };
        assert!(whole.iter().enumerate().filter(|found| is_across(*found)).count() > 10);
    }
}
