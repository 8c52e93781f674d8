"""Writes ../golden/clusters.json: k-means, seeding, SemDeDup, balanced sampling, quotas and NormSim, for `clusters.rs`.

Written from the formulas, dense and in f64, or by other libraries (faiss, scikit-learn): nothing here is taken from
the Rust code. Points are made by a formula on both sides, in integers, so that the file stays small.

python3 tests/oracle/clusters.py          (needs numpy, scikit-learn, faiss-cpu)
"""

import hashlib
import json
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path

import faiss
import numpy as np
from sklearn.cluster import kmeans_plusplus

getcontext().prec = 60
MASK = (1 << 64) - 1


# points: whole numbers of at most 17 bits over 8192, the same f32 everywhere


def mixed(x):
    """The finalizer of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def whole(seed, n, d):
    return np.array([(mixed((seed << 32) + i) >> 52) - 2048 for i in range(n * d)], dtype=np.int64).reshape(n, d)


def points(seed, n, d, n_concepts, spread):
    """Row i is concept `mixed(i) % n_concepts` and `spread` times noise."""
    concepts, noise = whole(seed, n_concepts, d), whole(seed + 1, n, d)
    concept = [mixed(i) % n_concepts for i in range(n)]
    return (4 * concepts[concept] + spread * noise) / 8192.0


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# k-means: objective Σ (1 − cos)


def objective(x, centroids):
    return float((1 - (x @ centroids.T).max(axis=1)).sum())


def lloyd(x, centroids, n_iterations):
    history = [objective(x, centroids)]
    for _ in range(n_iterations):
        cluster = (x @ centroids.T).argmax(axis=1)
        sizes = np.bincount(cluster, minlength=len(centroids))
        assert sizes.min() > 0
        sums = np.zeros_like(centroids)
        np.add.at(sums, cluster, x)
        centroids = unit(sums)
        history.append(objective(x, centroids))
    return centroids, history


def k_means():
    shape = dict(seed=11, n=3000, d=16, n_concepts=60, spread=5)
    x = unit(points(**shape))
    k, n_iterations = 40, 20
    start = [(i * 97) % len(x) for i in range(k)]
    _, history = lloyd(x, x[start], n_iterations)

    def by_faiss(init, **settings):
        km = faiss.Kmeans(16, k, niter=n_iterations, spherical=True, max_points_per_centroid=10**9, **settings)
        km.train(x.astype(np.float32), init_centroids=init)
        return objective(x, unit(km.centroids.astype(np.float64)))

    first = [by_faiss(None, seed=seed) for seed in range(10)]
    potentials, fitted = [], []
    for seed in range(10):
        _, plain = kmeans_plusplus(x, k, random_state=seed, n_local_trials=1)
        potentials.append(objective(x, x[plain]))
        centroids, _ = lloyd(x, x[plain], n_iterations)
        fitted.append(objective(x, centroids))
    return dict(
        points=shape,
        k=k,
        start=start,
        history=history,
        faiss_from_start=by_faiss(x[start].astype(np.float32)),
        faiss_random_starts=first,
        scikit_learn_potentials=potentials,
        scikit_learn_fitted=fitted,
    )


# SemDeDup, all pairs


def semdedup(epsilon):
    n = 600
    shape = dict(seed=21, n=n, d=8, n_concepts=3, spread=6)
    x = points(**shape)
    copies = [(i, (i * 7 + 3) % n) for i in range(0, n, 25)]
    for copy, original in copies:
        x[copy] = x[original]
    x = unit(x)
    ids = [("b" if i % 2 else "a", (i * 61) % n) for i in range(n)]
    centroid_similarities = [((i * 37) % 101) / 128 for i in range(n)]
    order = sorted(range(n), key=lambda i: (centroid_similarities[i], ids[i]))
    cosines = x @ x.T
    assert np.abs(cosines[np.triu_indices(n, 1)] - (1 - epsilon)).min() > 2e-6, "a pair on the threshold"
    duplicates = [-1] * n
    for place, j in enumerate(order):
        before = [(cosines[i, j], -at) for at, i in enumerate(order[:place]) if cosines[i, j] > 1 - epsilon]
        if before:
            best = max(before)
            others = [c for c, at in before if at != best[1]]
            # copies of one image are told apart by the order alone, which f32 may not see
            if others and best[0] - max(others) < 1e-6:
                duplicates[j] = -2
            else:
                duplicates[j] = order[-best[1]]
    assert duplicates.count(-2) < n // 10
    return dict(points=shape, copies=copies, epsilon=epsilon, duplicates=duplicates)


# balanced sampling and quotas, exact


def balance_hash(seed, round_, level, cluster):
    h = hashlib.blake2b(digest_size=8)
    h.update(b"balance\0" + seed.to_bytes(8, "little") + round_.to_bytes(8, "little") + b"\0")
    h.update(((level << 32) | cluster).to_bytes(8, "little"))
    return int.from_bytes(h.digest(), "little")


def balanced(parents, sizes, target, seed, round_):
    """`parents` by level, from the finest; recursion from the top."""
    counts = [0] * len(sizes)
    n_levels = len(parents) + 1

    def members(level, cluster):
        if level == 0:
            return sizes[cluster]
        return sum(members(level - 1, child) for child, parent in enumerate(parents[level - 1]) if parent == cluster)

    def fill(level, children, target):
        held = {child: members(level, child) for child in children}
        target = min(target, sum(held.values()))
        cut = 0
        while cut < max(held.values(), default=0) and sum(min(cut + 1, n) for n in held.values()) <= target:
            cut += 1
        share = {child: min(cut, n) for child, n in held.items()}
        more = sorted((c for c in children if held[c] > cut), key=lambda c: balance_hash(seed, round_, level, c))
        for child in more[: target - sum(share.values())]:
            share[child] += 1
        for child in children:
            if level == 0:
                counts[child] = share[child]
            else:
                below = [c for c, parent in enumerate(parents[level - 1]) if parent == child]
                fill(level - 1, below, share[child])

    top = max(parents[-1]) + 1 if parents else len(sizes)
    fill(n_levels - 1, list(range(top)), target)
    assert sum(counts) == min(target, sum(sizes))
    return counts


def quota(sizes, n_kept, name):
    weight = {"size": Decimal, "sqrt": lambda n: Decimal(n).sqrt(), "uniform": lambda n: Decimal(1 if n else 0)}[name]
    weights = [Fraction(weight(n)) for n in sizes]
    # λ where Σ min(n, λw) = n_kept, between two of the heights at which a cluster is whole
    kept_at = lambda height: sum(min(Fraction(n), height * w) for n, w in zip(sizes, weights))
    below = Fraction(0)
    for height in sorted(Fraction(n) / w for n, w in zip(sizes, weights) if n):
        if kept_at(height) >= n_kept:
            break
        below = height
    slope = sum(w for n, w in zip(sizes, weights) if n > below * w)
    height = below + ((n_kept - kept_at(below)) / slope if slope else 0)
    shares = [min(Fraction(n), height * w) for n, w in zip(sizes, weights)]
    counts = [int(s) for s in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda c: (counts[c] - shares[c], c))
    for c in by_remainder[: n_kept - sum(counts)]:
        counts[c] += 1
    assert sum(counts) == n_kept and all(c <= n for c, n in zip(counts, sizes))
    return counts


def shares():
    trees = []
    for seed in range(4):
        n, n_parents = 40, 9
        sizes = [mixed(1000 * seed + i) % (7 if i % 3 else 900) for i in range(n)]
        parents = [[mixed(77 * seed + i) % n_parents for i in range(n)], [i % 3 for i in range(n_parents)]]
        parents[0][:n_parents] = range(n_parents)
        for levels in [parents, parents[:1], []]:
            for target in [0, 17, 333, 2500, 10**6]:
                counts = balanced(levels, sizes, target, seed, 2)
                trees.append(dict(parents=levels, sizes=sizes, target=target, seed=seed, round=2, counts=counts))
    quotas = []
    for seed in range(6):
        sizes = [mixed(31 * seed + i) % [5, 80, 3000][i % 3] for i in range(30)]
        for name in ["size", "sqrt", "uniform"]:
            for n_kept in [0, 1, sum(sizes) // 7, sum(sizes) // 2, sum(sizes) - 1, sum(sizes)]:
                quotas.append(dict(sizes=sizes, n_kept=n_kept, quota=name, counts=quota(sizes, n_kept, name)))
    return trees, quotas


# density-based pruning: the projection by the piecewise linear function's own corners


def density(seed, sizes, n_kept, temperature, n_neighbours):
    shape = dict(seed=seed, n=len(sizes), d=6, n_concepts=4, spread=5)
    centroids = unit(points(**shape))
    mean_distances = [(mixed(seed * 1000 + i) % 512) / 1024 for i in range(len(sizes))]
    filled = [c for c in range(len(sizes)) if sizes[c]]
    distances = 1 - centroids @ centroids.T
    complexity = []
    for c in filled:
        near = sorted(distances[c, o] for o in filled if o != c)[:n_neighbours]
        complexity.append(np.mean(near) * mean_distances[c])
    p = np.exp((np.array(complexity) - max(complexity)) / temperature)
    wanted = n_kept * p / p.sum()
    caps = np.array([sizes[c] for c in filled], dtype=float)
    sum_at = lambda shift: np.clip(wanted + shift, 0, caps).sum()
    corners = sorted(np.concatenate([-wanted, caps - wanted]))
    above = next(i for i, corner in enumerate(corners) if sum_at(corner) >= n_kept)
    left, right = corners[above - 1], corners[above]
    share = (n_kept - sum_at(left)) / (sum_at(right) - sum_at(left))
    quotas = np.clip(wanted + left + share * (right - left), 0, caps)
    assert abs(quotas.sum() - n_kept) < 1e-6
    counts = np.floor(quotas + 1e-9).astype(int)
    remainders = quotas - counts
    order = sorted(range(len(filled)), key=lambda c: -remainders[c])
    n_left = n_kept - counts.sum()
    assert n_left == 0 or remainders[order[n_left - 1]] - remainders[order[n_left]] > 2e-3, "a tie"
    counts[order[:n_left]] += 1
    full = [0] * len(sizes)
    for c, count in zip(filled, counts):
        full[c] = int(count)
    return dict(
        points=shape, mean_distances=mean_distances, sizes=sizes, n_kept=n_kept, temperature=temperature,
        n_neighbours=n_neighbours, counts=full,
    )


def densities():
    found = []
    for seed in range(4):
        sizes = [mixed(seed * 77 + i) % 300 if i % 5 else 0 for i in range(35)]
        for fraction, temperature, n_neighbours in [(0.1, 0.1, 20), (0.5, 0.05, 3), (0.9, 0.1, 5)]:
            found.append(density(50 + 2 * seed, sizes, int(sum(sizes) * fraction), temperature, n_neighbours))
    return found


# closeness to targets


def closeness(n_targets):
    rows, targets = dict(seed=41, n=300, d=24, n_concepts=5, spread=4), dict(seed=43, n=n_targets, d=24, n_concepts=9, spread=3)
    x, t = unit(points(**rows)), unit(points(**targets))
    similarities = x @ t.T
    return dict(
        rows=rows,
        targets=targets,
        norm_2=[float(v) for v in np.linalg.norm(similarities, axis=1)],
        norm_infinity=[float(v) for v in np.abs(similarities).max(axis=1)],
        nearest=[int(v) for v in similarities.argmax(axis=1)],
        nearest_similarity=[float(v) for v in similarities.max(axis=1)],
    )


def main():
    trees, quotas = shares()
    golden = dict(
        k_means=k_means(),
        semdedup=[semdedup(0.05), semdedup(0.2)],
        balanced=trees,
        quotas=quotas,
        density=densities(),
        closeness=[closeness(20), closeness(700)],
    )
    path = Path(__file__).parent.parent / "golden" / "clusters.json"
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
