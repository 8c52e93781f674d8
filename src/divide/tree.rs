//! Which coarser cluster each cluster lies in: the tree that hierarchical levels make of the clusters.

use serde::{Deserialize, Serialize};

/// The clusters that samples have, and the levels above them.
///
/// Level 0 is the clusters of samples; each level above has fewer. Without levels above it the tree is flat.
/// A cluster above may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterTree {
    /// Clusters of each level, from the finest.
    n_clusters: Vec<usize>,
    /// `parents[level][cluster]`: the cluster of the next level in which a cluster of this level lies.
    parents: Vec<Vec<u32>>,
}

impl ClusterTree {
    /// A tree without levels above its clusters.
    pub fn flat(n_clusters: usize) -> ClusterTree {
        ClusterTree { n_clusters: vec![n_clusters], parents: Vec::new() }
    }

    /// Puts a level of `n_clusters` on top: `parents` has the cluster there of each that was on top.
    pub fn push_level(&mut self, n_clusters: usize, parents: Vec<u32>) {
        assert_eq!(parents.len(), self.n_clusters[self.n_levels() - 1], "one parent a cluster");
        assert!(parents.iter().all(|parent| (*parent as usize) < n_clusters));
        self.n_clusters.push(n_clusters);
        self.parents.push(parents);
    }

    /// At least 1.
    pub fn n_levels(&self) -> usize {
        self.n_clusters.len()
    }

    /// Clusters of each level above level 0.
    pub fn level_sizes(&self) -> &[usize] {
        &self.n_clusters[1..]
    }

    /// Clusters of a level.
    pub fn n_clusters(&self, level: usize) -> usize {
        self.n_clusters[level]
    }

    /// The cluster of level + 1 in which each cluster of this level lies; none on the top level.
    pub fn parents(&self, level: usize) -> Option<&[u32]> {
        self.parents.get(level).map(Vec::as_slice)
    }

    /// The cluster of each level above in which a cluster of level 0 lies, from the finest.
    pub fn ancestors(&self, cluster: u32) -> impl Iterator<Item = u32> {
        self.parents.iter().scan(cluster, |cluster, parents| {
            *cluster = parents[*cluster as usize];
            Some(*cluster)
        })
    }

    /// What the clusters of each level hold, from the finest, if those of level 0 hold `sizes`.
    pub fn sizes(&self, sizes: &[u64]) -> Vec<Vec<u64>> {
        assert_eq!(sizes.len(), self.n_clusters[0], "one size a cluster");
        let mut levels = vec![sizes.to_vec()];
        for (level, parents) in self.parents.iter().enumerate() {
            let mut above = vec![0; self.n_clusters[level + 1]];
            for (size, parent) in levels[level].iter().zip(parents) {
                above[*parent as usize] += size;
            }
            levels.push(above);
        }
        levels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ancestors_follow_the_parents() {
        let mut tree = ClusterTree::flat(5);
        tree.push_level(3, vec![2, 0, 2, 1, 1]);
        tree.push_level(2, vec![0, 1, 0]);
        assert_eq!((tree.n_levels(), tree.n_clusters(1)), (3, 3));
        assert_eq!(tree.ancestors(0).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(tree.ancestors(3).collect::<Vec<_>>(), [1, 1]);
        let sizes = tree.sizes(&[1, 2, 4, 8, 16]);
        assert_eq!(sizes, [vec![1, 2, 4, 8, 16], vec![2, 24, 5], vec![7, 24]]);
        assert_eq!(tree.parents(2), None);
    }
}
