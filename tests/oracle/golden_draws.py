"""Golden files of draws: joint_draws.json, plackett_luce.json and counts.json."""

import math
from dataclasses import asdict

import numpy as np

from golden_inputs import LARGE, N, ids, parameters, rescaled
from methods import counts, draws, losses

MULTIPLIER = 29  # coprime to 96: super-batches hold the pool's rows in another order


def super_batch(n, start=0):
    return [(start + i * MULTIPLIER) % N for i in range(n)]


# name, objective, scoring, (α, β) if not the pool's own, rows, then the settings of the draw
JOINT = [
    ("learnability", "sigmoid", "learnability", None, super_batch(64), (24, 6, 1.0, "noise", 42)),
    ("hard_learner", "sigmoid", "hard_learner", None, super_batch(64, 3), (17, 5, 2.0, "noise", 7)),
    ("easy_reference", "sigmoid", "easy_reference", None, super_batch(64, 5), (17, 5, 2.0, "noise", 7)),
    ("top_k", "sigmoid", "learnability", None, super_batch(72), (30, 30, 1.0, "top_k", 0)),
    ("gain 4, round 2, pass 3", "sigmoid", "learnability", None, super_batch(64), (24, 4, 4.0, "noise", 1000, 2, 3)),
    ("large seed, one chunk", "sigmoid", "learnability", None, super_batch(48), (12, 1, 0.5, "noise", 2**63)),
    ("large logits", "sigmoid", "learnability", LARGE, super_batch(64), (20, 5, 0.02, "noise", 11)),
    ("more chunks than picks", "sigmoid", "learnability", None, super_batch(40), (5, 16, 1.0, "noise", 3)),
    ("filter ratio near 1", "sigmoid", "learnability", None, super_batch(96), (1, 16, 1.0, "noise", 5)),
    ("filter ratio 0", "sigmoid", "learnability", None, super_batch(9), (9, 4, 1.0, "noise", 6)),
    ("one sample", "sigmoid", "learnability", None, [17], (1, 16, 1.0, "noise", 8)),
    ("nothing kept", "sigmoid", "learnability", None, super_batch(8), (0, 16, 1.0, "noise", 8)),
    ("softmax learnability", "softmax", "learnability", None, super_batch(64), (24, 6, 2.0, "noise", 42)),
    ("softmax hard_learner", "softmax", "hard_learner", None, super_batch(64, 3), (17, 5, 2.0, "noise", 7)),
    ("softmax easy_reference", "softmax", "easy_reference", None, super_batch(64, 5), (17, 5, 1.0, "noise", 7)),
    ("softmax top_k", "softmax", "learnability", None, super_batch(56), (21, 21, 1.0, "top_k", 0)),
    ("softmax large logits", "softmax", "learnability", LARGE, super_batch(64), (20, 5, 0.1, "noise", 11)),
]


def models_of(learner, reference, overridden, rows):
    pair = (learner, reference)
    if overridden:
        pair = tuple(rescaled(model, given) for model, given in zip(pair, overridden))
    return tuple(model.of(rows) for model in pair)


def decided_draw(objective, scoring, pair, own_ids, settings):
    """The draw with the first seed from the given one on whose picks no f32 kernel can change."""
    given = draws.logits_given(objective, scoring, *pair)
    while True:
        chunks = draws.draw(given, own_ids, settings)
        if draws.is_decided(chunks):
            return settings, chunks
        assert settings.draw == "noise", "a draw without noise is too close"
        settings = draws.Settings(**(asdict(settings) | dict(seed=settings.seed + 1)))


def wrong_readings(objective, scoring, learner, reference):
    """Joint logits as they come out with one mistake: name → function of the drawn."""
    logged = [rescaled(m, (math.log(m.logit_scale), m.logit_bias)) for m in (learner, reference)]
    signed = [rescaled(m, (m.logit_scale, -m.logit_bias)) for m in (learner, reference)]
    crossed = [losses.Model(m.x, other.y, m.logit_scale, m.logit_bias) for m, other in ((learner, reference), (reference, learner))]
    wrong = {
        "models exchanged": draws.logits_given(objective, scoring, reference, learner),
        "logarithm of the scale": draws.logits_given(objective, scoring, *logged),
        "towers of different models": draws.logits_given(objective, scoring, *crossed),
    }
    if objective == "sigmoid":
        s = losses.score_matrix(scoring, learner, reference)
        own, zeros = np.diag(s), np.zeros(len(s))
        wrong["sign of the bias"] = draws.logits_given(objective, scoring, *signed)
        wrong["image direction twice"] = lambda drawn: (own + 2 * s[:, drawn].sum(axis=1), zeros)
        wrong["caption direction twice"] = lambda drawn: (own + 2 * s[drawn, :].sum(axis=0), zeros)
        wrong["one direction"] = lambda drawn: (own + s[:, drawn].sum(axis=1), zeros)
    return wrong


def assert_mistakes_show(objective, scoring, pair, chunks, name):
    """Every mistake moves some logit by more than a hundred times its tolerance."""
    for mistake, logits_of in wrong_readings(objective, scoring, *pair).items():
        drawn, worst = [], 0.0
        for chunk in chunks:
            moved = np.abs(logits_of(drawn)[0] - chunk.logits) / (draws.TOLERANCE * (1 + chunk.terms))
            worst, drawn = max(worst, np.nanmax(moved)), drawn + chunk.picks
        assert worst > 100, f"{name}: `{mistake}` moves logits by {worst:.1f} tolerances only"


def joint_case(learner, reference, name, objective, scoring, overridden, rows, settings):
    pair = models_of(learner, reference, overridden, rows)
    own_ids = [ids()[row] for row in rows]
    settings, chunks = decided_draw(objective, scoring, pair, own_ids, draws.Settings(*settings))
    if settings.sub_batch_size > 12:
        assert_mistakes_show(objective, scoring, pair, chunks, name)
    picks = draws.picks_of(chunks)
    assert len(picks) == len(set(picks)) == settings.sub_batch_size
    case = dict(name=name, objective=objective, scoring=scoring, rows=rows)
    case |= dict(learner=parameters(pair[0]), reference=parameters(pair[1]))
    case |= asdict(settings) | dict(picks=picks, chunks=[asdict(chunk) for chunk in chunks])
    positive = (losses.positive_losses(objective, m.logits()) for m in pair)
    case["scores"] = losses.combine(scoring, *positive)
    if objective == "sigmoid" and picks:
        case["batch_learnability"] = losses.batch_learnability(losses.score_matrix(scoring, *pair), picks)
    return case


def joint_draws(learner, reference):
    return dict(cases=[joint_case(learner, reference, *case) for case in JOINT])


# Plackett–Luce


N_DRAWS = 20_000
FIVE = [4, 11, 30, 57, 80]


def law_case(name, given, settings, source):
    """Exact probabilities of the drawn, and how often each came for the seeds 0 to N_DRAWS − 1."""
    own_ids = [ids()[row] for row in FIVE]
    b, n_chunks, gain = settings
    sequences = draws.exact_sequences(lambda drawn: given(drawn)[0], gain, b, n_chunks)
    assert abs(sum(sequences.values()) - 1) < 1e-12
    found = dict.fromkeys(sequences, 0)
    for seed in range(N_DRAWS):
        found[tuple(draws.picks_of(draws.draw(given, own_ids, draws.Settings(b, n_chunks, gain, "noise", seed))))] += 1
    for sequence, p in sequences.items():
        assert abs(found[sequence] - N_DRAWS * p) <= 4 * math.sqrt(N_DRAWS * p * (1 - p)) + 1, (name, sequence)
    subsets = draws.exact_subsets(sequences)
    members = [sum(p for subset, p in subsets.items() if i in subset) for i in range(5)]
    case = dict(name=name, rows=FIVE, sub_batch_size=b, n_chunks=n_chunks, gain=gain) | source
    case["sequences"] = [[list(sequence), p, found[sequence]] for sequence, p in sequences.items()]
    case["subsets"] = [[list(subset), p] for subset, p in subsets.items()]
    return case | dict(n_draws=N_DRAWS, inclusion=members)


def plackett_luce(learner, reference):
    pair = models_of(learner, reference, None, FIVE)
    scores = np.array([0.5, -1.25, 2.0, 0.0, 1.125])
    flat = lambda drawn: (scores, np.abs(scores))
    cases = [
        law_case("independent", flat, (2, 1, 1.0), dict(scores=scores)),
        law_case("independent, gain 3", flat, (2, 1, 3.0), dict(scores=scores)),
        law_case("independent, gain 0", flat, (3, 1, 0.0), dict(scores=scores)),
    ]
    for objective, settings in (("sigmoid", (2, 2, 0.5)), ("sigmoid", (3, 2, 0.5)), ("softmax", (2, 2, 0.5)), ("softmax", (3, 3, 0.25))):
        given = draws.logits_given(objective, "learnability", *pair)
        source = dict(objective=objective, scoring="learnability")
        source |= dict(learner=parameters(pair[0]), reference=parameters(pair[1]))
        cases.append(law_case(f"joint, {objective}, {settings[0]} in {settings[1]} chunks", given, settings, source))
    return dict(cases=cases)


# Counts


PLANS = [  # filter ratio, super-batch size, chunks, samples of each dealing group
    ("0.8", 20_480, 16, [204_800, 163_841, 1]),
    ("0.5", 10, 16, [25, 35, 4, 1]),
    ("0.333", 7, 3, [100, 53]),
    ("0.999", 64, 16, [640, 64, 3]),
    ("0.999999", 1000, 16, [1_000_000, 499_999]),
    ("0", 8, 5, [33]),
    ("0.9", 1, 16, [17]),
    ("0.5", 1, 16, [5]),
]
QUOTAS = [  # cluster sizes, kept over the pool
    ([100, 9, 4, 50, 0, 1], 60),
    ([6, 3, 1], 5),
    ([1000, 1000, 10, 10, 10], 1015),
    ([7, 7, 7, 7], 10),
    ([1, 2, 3, 4], 10),
    ([5, 5], 0),
    ([123_456_789, 987_654_321, 55_555, 1], 200_000_000),
]


def count_plan(filter_ratio, super_batch_size, n_chunks, groups):
    sizes = [counts.super_batch_sizes(n, super_batch_size) for n in groups]
    flat = [size for group in sizes for size in group]
    n_kept = counts.kept_over_pool(sum(flat), filter_ratio)
    kept = counts.shared_by_size(n_kept, flat)
    assert sum(kept) == n_kept and all(0 <= b <= n for b, n in zip(kept, flat))
    chunks = {str(b): counts.chunk_sizes(b, n_chunks) for b in sorted(set(kept)) if b}
    assert all(sum(sizes_) == int(b) and all(sizes_) for b, sizes_ in chunks.items())
    plan = dict(filter_ratio=filter_ratio, super_batch_size=super_batch_size, n_chunks=n_chunks, groups=groups)
    return plan | dict(super_batches=sizes, n_kept=n_kept, kept=kept, chunk_sizes=chunks)


def quota_case(sizes, n_kept, weights):
    real, whole = counts.quotas(sizes, n_kept, weights)
    assert sum(whole) == n_kept and all(q <= n for q, n in zip(whole, sizes))
    shares = {str(c): counts.shared_by_size(q, [n - n // 3, n // 3]) for c, (q, n) in enumerate(zip(whole, sizes)) if n > 3}
    case = dict(cluster_sizes=sizes, n_kept=n_kept, weights=weights, real=[float(q) for q in real])
    return case | dict(quotas=whole, in_two_super_batches=shares)


def cost_table():
    table = []
    for times in (2.0, 5.0, 10.0):
        for scorer in (1.0, 0.28, 0.0):
            row = dict(super_over_sub=times, scorer_cost=scorer, offline=counts.cost_offline(times, scorer))
            row |= dict(online=counts.cost_online(times), flexi=counts.cost_flexi(times, scorer, 0.64))
            table.append(row | dict(reference_1_round=counts.cost_reference(times, 1), reference_8_rounds=counts.cost_reference(times, 8)))
    return table


def count_cases():
    weights = ("proportional", "square_root", "equal")
    return dict(
        plans=[count_plan(*plan) for plan in PLANS],
        quotas=[quota_case(*case, w) for case in QUOTAS for w in weights],
        costs=cost_table(),
    )
