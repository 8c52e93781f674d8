"""Spherical k-means and balanced sampling over a tree of clusters. METHODS §5 and §6."""

from dataclasses import dataclass

import numpy as np


def unit(matrix):
    """Rows at unit length."""
    return matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Assignment:
    clusters: np.ndarray  # [n], the nearest centroid, the first of equals
    similarities: np.ndarray  # [n], its cosine
    margins: np.ndarray  # [n], its lead over the second

    def objective(self):
        """Σ(1 − cos)."""
        return float((1 - self.similarities).sum())


def assign(points, centroids):
    similarities = points @ centroids.T
    best_two = np.sort(similarities, axis=1)[:, -2:]
    return Assignment(similarities.argmax(1), best_two[:, -1], best_two[:, -1] - best_two[:, 0])


def lloyd_step(points, centroids):
    """Assigns, then moves each centroid to the normalised sum of its points; none may be empty."""
    clusters = assign(points, centroids).clusters
    sizes = np.bincount(clusters, minlength=len(centroids))
    assert sizes.all(), f"clusters {np.flatnonzero(sizes == 0)} are empty"
    sums = np.zeros_like(centroids)
    np.add.at(sums, clusters, points)
    return unit(sums), clusters


def spherical_lloyd(points, start, n_iterations_max=1000):
    """Unit points [n, d], unit centroids [k, d] → the fixed point's centroids and how many steps it took."""
    centroids, before = start, None
    for n_steps in range(1, n_iterations_max + 1):
        centroids, clusters = lloyd_step(points, centroids)
        if before is not None and np.array_equal(clusters, before):
            return centroids, n_steps
        before = clusters
    raise ValueError("no fixed point")


def seeding_chances(points, chosen):
    """k-means++ on the sphere: the next centre is drawn ∝ 1 − cos to the nearest chosen one, [n]."""
    distances = 1 - (points @ points[chosen].T).max(axis=1)
    distances = np.maximum(distances, 0)
    return distances / distances.sum()


def weighted_pick(chances, u):
    """The first position whose running sum exceeds u ∈ (0, 1) of the whole."""
    running = np.cumsum(chances)
    return int(min(np.searchsorted(running, u * running[-1], side="right"), len(chances) - 1))


def k_means_plus_plus(points, k, uniforms):
    """k-means++ seeds, one uniform number a centre."""
    chosen = [int(uniforms[0] * len(points))]
    for u in uniforms[1:k]:
        chosen.append(weighted_pick(seeding_chances(points, chosen), u))
    return points[chosen]


# Balanced sampling


def largest_cut(sizes, target):
    """The largest whole x with Σ min(x, size) ≤ target."""
    x = 0
    while x < max(sizes, default=0) and sum(min(x + 1, s) for s in sizes) <= target:
        x += 1
    return x


def balanced_counts(sizes, target, order):
    """What each child gives: min(x, size), and one more from unsaturated children in `order` until Σ = target."""
    target = min(target, sum(sizes))
    x = largest_cut(sizes, target)
    counts = [min(x, s) for s in sizes]
    unsaturated = [child for child in order if sizes[child] > x]
    for child in unsaturated[: target - sum(counts)]:
        counts[child] += 1
    return counts


def tree_size(node):
    return node["size"] if "size" in node else sum(tree_size(child) for child in node["children"])


def balanced_tree(node, target):
    """Top-down: {leaf name: count}. A node is {name, size} or {name, children, order}."""
    if "size" in node:
        return {node["name"]: min(target, node["size"])}
    counts = balanced_counts([tree_size(child) for child in node["children"]], target, node["order"])
    leaves = {}
    for child, count in zip(node["children"], counts):
        leaves |= balanced_tree(child, count)
    return leaves
