//! The n smallest of a stream, in memory for n: how seeded samples of a pool are drawn by keyed hash.

use std::collections::BinaryHeap;

/// Keeps the `capacity` smallest of what it is given.
pub struct Smallest<T> {
    capacity: usize,
    heap: BinaryHeap<T>,
}

impl<T: Ord> Smallest<T> {
    pub fn new(capacity: usize) -> Smallest<T> {
        Smallest { capacity, heap: BinaryHeap::new() }
    }

    pub fn push(&mut self, value: T) {
        if self.heap.len() < self.capacity {
            self.heap.push(value);
        } else if let Some(mut largest) = self.heap.peek_mut()
            && value < *largest
        {
            *largest = value;
        }
    }

    /// What is kept so far, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.heap.iter()
    }

    pub fn into_sorted(self) -> Vec<T> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_smallest_in_order() {
        let mut smallest = Smallest::new(3);
        [5, 1, 4, 1, 9, 2].into_iter().for_each(|value| smallest.push(value));
        assert_eq!(smallest.into_sorted(), [1, 1, 2]);
        let mut none = Smallest::new(0);
        none.push(1);
        assert!(none.into_sorted().is_empty());
    }
}
