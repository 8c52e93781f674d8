"""Golden files of clusters: clusters.json and hardness.json."""

import faiss
import numpy as np
from sklearn.cluster import kmeans_plusplus

import planted_pools as planted
from golden_inputs import LARGE, N, caption_codes, parameters, rescaled
from methods import clusters, hardness, losses

# clusters.json


def cluster_points(n=600, d=12, n_concepts=10):
    """Points around ten centres, of four decimals; unit length only once normalised."""
    centres = planted.unit_noise(21, 1, n_concepts, d)
    concept = (planted.uniforms(21, 2, n) * planted.uniforms(21, 3, n) * n_concepts).astype(int)
    return np.round(planted.mix(centres[concept], 0.9, planted.unit_noise(21, 4, n, d)), 4)


def lloyd_case(points, start):
    centroids, n_steps = clusters.spherical_lloyd(points, points[start])
    found = clusters.assign(points, centroids)
    case = dict(start=start, n_iterations=n_steps, objective=found.objective(), clusters=found.clusters)
    return case | dict(sizes=np.bincount(found.clusters), similarities=found.similarities, margins=found.margins, centroids=centroids)


def objective_after_lloyd(points, start):
    centroids, _ = clusters.spherical_lloyd(points, start)
    return clusters.assign(points, centroids).objective()


def of_faiss(points, k, seed):
    """Best of five restarts of faiss-cpu's spherical k-means: its objective by our own sum."""
    k_means = faiss.Kmeans(points.shape[1], k, niter=100, nredo=5, spherical=True, seed=seed, min_points_per_centroid=1)
    k_means.train(points.astype(np.float32))
    return clusters.assign(points, clusters.unit(k_means.centroids.astype(np.float64))).objective()


def quality_case(points, k):
    """Seeding potentials and objectives after Lloyd over ten seeds, by scikit-learn's k-means++, and faiss."""
    potentials, objectives = [], []
    for seed in range(10):
        start, _ = kmeans_plusplus(points, k, random_state=seed, n_local_trials=1)
        potentials.append(clusters.assign(points, start).objective())
        objectives.append(objective_after_lloyd(points, start))
    case = dict(k=k, sklearn_potentials=potentials, sklearn_objectives=objectives)
    uniform = [np.argsort(planted.words(seed, 31, len(points)))[:k] for seed in range(10)]
    case["uniform_potentials"] = [clusters.assign(points, points[rows]).objective() for rows in uniform]
    own = [clusters.k_means_plus_plus(points, k, planted.uniforms(seed, 32, k)) for seed in range(10)]
    case["our_potentials"] = [clusters.assign(points, start).objective() for start in own]
    case["our_objectives"] = [objective_after_lloyd(points, start) for start in own]
    return case | dict(faiss_objectives=[of_faiss(points, k, seed) for seed in (1, 2, 3)])


def cluster_cases():
    stored = cluster_points()
    points = clusters.unit(stored)
    lloyd = [lloyd_case(points, start) for start in ([0, 100, 200, 300], [5, 77, 140, 301, 400, 512, 599, 33, 260, 450])]
    return dict(points=stored, lloyd=lloyd, quality=[quality_case(points, k) for k in (4, 10, 24)], balanced=balanced_cases())


# Balanced sampling


def balanced_cases():
    cut = [([5, 1, 9], t, [2, 0, 1]) for t in (0, 1, 2, 3, 8, 14, 15, 99)]
    cut += [([1000, 10, 10, 400, 3], 777, [4, 3, 2, 1, 0]), ([7, 7, 7], 10, [1, 2, 0]), ([0, 4], 3, [0, 1])]
    flat = [dict(sizes=s, target=t, order=o, cut=clusters.largest_cut(s, min(t, sum(s))), counts=clusters.balanced_counts(s, t, o)) for s, t, o in cut]
    leaf = lambda name, size: dict(name=name, size=size)
    tree = dict(
        order=[2, 0, 1],
        children=[
            dict(order=[1, 0, 2], children=[leaf("a0", 50), leaf("a1", 3), leaf("a2", 20)]),
            dict(order=[0, 1], children=[leaf("b0", 1), leaf("b1", 5)]),
            dict(order=[1, 0], children=[leaf("c0", 200), dict(order=[0, 1], children=[leaf("c10", 40), leaf("c11", 2)])]),
        ],
    )
    total = clusters.tree_size(tree)
    trees = [dict(target=t, leaves=clusters.balanced_tree(tree, t)) for t in (1, 10, 47, 100, 200, total, total + 5)]
    for case in trees:
        assert sum(case["leaves"].values()) == min(case["target"], total)
    return dict(flat=flat, tree=tree, trees=trees)


# hardness.json


QUERIES = [5, 6, 7, 8, 10, 11, 16, 22, 40, 62, 1, 95]  # all but the last two are of the bank's concept


def hardness_case(name, pair, cluster_bank, pool_bank, temperature, threshold, b):
    learner, reference = pair
    codes, found = caption_codes(), []
    for i in QUERIES:
        row = dict(row=i) | hardness.columns(reference, codes, i, (cluster_bank, pool_bank), temperature, threshold)
        negatives, _ = hardness.split_bank(reference.x, codes, i, cluster_bank, threshold)
        for objective in ("sigmoid", "softmax"):
            for scoring in losses.SCORINGS:
                value = hardness.hard_learnability(objective, scoring, *pair, i, negatives, b)
                row[f"{objective}_{scoring}"] = value
        found.append(row)
    case = dict(name=name, learner=parameters(learner), reference=parameters(reference), sub_batch_size=b)
    case |= dict(temperature=temperature, near_duplicate_similarity=threshold, cluster_bank=cluster_bank, pool_bank=pool_bank)
    return case | dict(columns=found)


def assert_sure(x, banks, threshold):
    """No similarity stands so near to the threshold that f32 could put it on the other side."""
    similarities = x[QUERIES] @ x[sorted({row for bank in banks for row in bank})].T
    assert np.abs(similarities - threshold).min() > 1e-5


def hardness_cases(learner, reference, pool):
    by_concept = [int(i) for i in np.argsort(pool.concept, kind="stable")]
    cluster_bank = [i for i in by_concept if pool.concept[i] == 0][::-1]
    pool_bank = [(i * 41 + 7) % N for i in range(48)]
    large = [rescaled(model, given) for model, given in zip((learner, reference), LARGE)]
    cases = [
        hardness_case("τ = 0.1", (learner, reference), cluster_bank, pool_bank, 0.1, 0.95, 32),
        hardness_case("small τ, low threshold", (learner, reference), cluster_bank, pool_bank, 0.01, 0.8, 4096),
        hardness_case("few negatives", (learner, reference), cluster_bank[:15], pool_bank, 0.1, 0.95, 32),
        hardness_case("large logits", large, cluster_bank, pool_bank, 0.1, 0.95, 32),
    ]
    for threshold in (0.95, 0.8):
        assert_sure(reference.x, (cluster_bank, pool_bank), threshold)
    gains = [row["hardness_gain"] for row in cases[0]["columns"]]
    assert np.mean([g for g in gains if g is not None]) > 0
    assert all(row["hardness_gain"] is None for row in cases[2]["columns"])
    assert any(row["n_false_negatives"] for row in cases[0]["columns"])
    return dict(cases=cases)
