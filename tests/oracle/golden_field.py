"""Golden file of the field's methods: field.json."""

import numpy as np

import planted_pools as planted
from golden_inputs import LARGE, N, as_f32, caption_codes, f32_rows, ids, parameters, rescaled
from methods import clusters, field, losses

D = 16


def full_loss_case(name, objective, scoring, learner, reference, rows, b):
    pair = learner.of(rows), reference.of(rows)
    shares = field.full_loss_shares(objective, scoring, *pair, b)
    own_ids = [ids()[row] for row in rows]
    case = dict(name=name, objective=objective, scoring=scoring, rows=rows, sub_batch_size=b, shares=shares)
    case |= dict(learner=parameters(learner), reference=parameters(reference))
    ordered = np.sort(shares)[::-1]
    return case | dict(picks=field.top_k(shares, own_ids, b), gap=float(ordered[b - 1] - ordered[b]))


def full_loss_cases(learner, reference):
    rows = [(i * 29) % N for i in range(64)]
    large = [rescaled(model, given) for model, given in zip((learner, reference), LARGE)]
    cases = [
        full_loss_case("sigmoid", "sigmoid", "learnability", learner, reference, rows, 16),
        full_loss_case("sigmoid hard_learner", "sigmoid", "hard_learner", learner, reference, rows, 16),
        full_loss_case("sigmoid large logits", "sigmoid", "learnability", *large, rows, 16),
        full_loss_case("softmax", "softmax", "learnability", learner, reference, rows, 16),
    ]
    s = losses.score_matrix("learnability", learner.of(rows), reference.of(rows))
    for i in (0, 9):  # against the formula of §6, term by term
        direct = s[i, i] + 15 / 63 * sum((s[i, j] + s[j, i]) / 2 for j in range(64) if j != i)
        assert abs(direct - cases[0]["shares"][i]) < 1e-10
    return cases


def clip_score_case():
    """Similarities as f32 with ties and negatives; fractions of what reaches the step and of a larger pool."""
    scores = np.round(planted.normals(17, 1, 1, 40)[0] / 4, 2)
    scores[scores == 0] = 0.01  # no signed zeros
    scores = as_f32(scores)
    own_ids = ids()[:40]
    assert len(set(scores)) < 35
    fractions = []
    for fraction in ("0", "0.0125", "0.0375", "0.1", "0.3", "0.5", "0.999", "1"):
        for n_pool in (40, 50):
            fractions.append(dict(fraction=fraction, n_pool=n_pool, kept=field.top_fraction(scores, own_ids, fraction, n_pool)))
    thresholds = [dict(threshold=t, kept=np.flatnonzero(scores > t)) for t in (-0.105, 0.005, 0.205)]
    return dict(scores=f32_rows([scores])[0], ids=[list(i) for i in own_ids], fractions=fractions, thresholds=thresholds)


def neg_clip_loss_cases(reference):
    similarities = reference.similarities()
    in_two = [[i for i in range(N) if i % 2 == r] for r in (0, 1)]
    uneven = [list(range(70)), list(range(70, N))]
    cases = []
    for temperature, batch_size, partitions in (
        (0.01, 32_768, [in_two]),
        (0.01, 32_768, [in_two, uneven, [list(range(N))[::-1]]]),
        (0.01, 48, [in_two]),
        (0.1, 32_768, [uneven]),
    ):
        found = field.neg_clip_loss(similarities, partitions, temperature, batch_size)
        cases.append(dict(temperature=temperature, batch_size=batch_size, partitions=partitions, scores=found))
    return cases


def norm_sim_case(reference):
    targets = as_f32(planted.unit_noise(18, 1, 6, D))
    assert (reference.x @ targets.T).min() < -np.abs(reference.x @ targets.T).max() / 2  # absolute values matter
    found = {p: field.norm_sim(reference.x, targets, order) for p, order in (("p_2", 2), ("p_infinity", np.inf))}
    return dict(targets=f32_rows(targets)) | found


def decontaminate_case(reference):
    x = reference.x
    noise = planted.unit_noise(19, 1, 4, D)
    sets = {
        "near": as_f32(planted.mix(x[[3, 50]], 0.2, noise[:2])),
        "both": as_f32(np.concatenate([x[[3]], planted.mix(x[[77]], 0.3, noise[2:3])])),
        "far": as_f32(planted.unit_noise(19, 2, 3, D)),
    }
    threshold = 0.9
    found = field.decontaminate(x, sets, threshold)
    assert found.dropped and found.n_by_set["both"] and len(found.dropped) < sum(found.n_by_set.values())
    assert min(np.abs(values - threshold).min() for values in found.nearest.values()) > 1e-5
    case = dict(threshold=threshold, sets={name: f32_rows(rows) for name, rows in sets.items()})
    return case | dict(nearest=found.nearest, dropped=found.dropped, n_by_set=found.n_by_set)


def sem_dedup_cases(reference, pool):
    x, cluster = reference.x, [int(c) for c in pool.concept // 2]
    centroids = clusters.unit(np.stack([x[np.array(cluster) == c].sum(axis=0) for c in range(3)]))
    centroids = as_f32(centroids)
    similarities = np.einsum("nd,nd->n", x, centroids[cluster])
    cases = []
    for epsilon in (0.02, 0.1, 0.2):
        found = field.sem_dedup(x, cluster, similarities, ids(), epsilon)
        inside = [x[i] @ x[j] for i in range(N) for j in range(i) if cluster[i] == cluster[j]]
        assert np.abs(np.array(inside) - (1 - epsilon)).min() > 1e-6
        gaps = [np.diff(similarities[order]).min() for order in found.order.values() if len(order) > 1]
        assert min(gaps) > 1e-6
        dropped = [dict(row=j, before=before, most_similar=found.most_similar[j]) for j, before in sorted(found.before.items())]
        cases.append(dict(epsilon=epsilon, dropped=dropped))
    chained = [d for d in cases[-1]["dropped"] if all(i in found.before for i in d["before"])]
    assert chained, "no sample is dropped for one that was dropped itself"
    return dict(clusters=cluster, centroids=f32_rows(centroids), centroid_similarities=similarities, cases=cases)


def soft_cap_case(name, n, n_total, draw_size, penalty, seed, spread):
    scores = np.round(spread * planted.normals(23, 1, 1, n)[0], 3)
    own_ids = ids()[:n]
    repeats = field.soft_cap(scores, own_ids, n_total, draw_size, penalty, seed)
    n_repeats = np.bincount([pick for picks in repeats for pick in picks], minlength=n)
    assert n_repeats.sum() == n_total
    case = dict(name=name, scores=scores, n_samples=n, n_total=n_total, draw_size=draw_size, penalty=penalty, seed=seed)
    return case | dict(repeats=repeats, n_repeats=n_repeats)


def random_case():
    picks = field.random_rows(ids(), 30, 99)
    return dict(seed=99, n_kept=30, picks=picks)


def field_cases(learner, reference, pool):
    assert len(set(caption_codes())) < N
    return dict(
        full_loss=full_loss_cases(learner, reference),
        clip_score=clip_score_case(),
        neg_clip_loss=neg_clip_loss_cases(reference),
        norm_sim=norm_sim_case(reference),
        decontaminate=decontaminate_case(reference),
        sem_dedup=sem_dedup_cases(reference, pool),
        soft_cap=[
            soft_cap_case("repeats", 12, 40, 5, 0.5, 3, 1.0),
            soft_cap_case("one draw", 20, 6, 6, 0.15, 4, 1.0),
            soft_cap_case("more than there are in one draw", 4, 11, 100, 1.0, 5, 2.0),
            soft_cap_case("one at a time", 6, 9, 1, 10.0, 6, 1.0),
        ],
        random=random_case(),
    )
