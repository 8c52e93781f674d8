"""Golden files of scores: scores.json, independent.json, calibrate.json, agreement.json and planted.json."""

import itertools
import math

import numpy as np

import planted_pools as planted
from golden_inputs import LARGE, N, f32_rows, ids, parameters, rescaled
from methods import agreement, calibrate, draws, field, independent, losses

FEW = [5, 34, 63, 92, 25, 54, 83, 16, 45, 74, 7, 36]  # a small super-batch for whole matrices


# scores.json


def matrices(name, learner, reference):
    """Losses of both objectives and the three score matrices of twelve samples."""
    pair = learner.of(FEW), reference.of(FEW)
    case = dict(name=name, rows=FEW, learner=parameters(learner), reference=parameters(reference))
    for who, model in zip(("learner", "reference"), pair):
        logits = model.logits()
        case |= {
            f"{who}_similarities": np.diag(model.similarities()),
            f"{who}_sigmoid_losses": losses.sigmoid_losses(logits),
            f"{who}_softmax_losses": losses.softmax_losses(logits),
            f"{who}_positive_sigmoid": losses.positive_losses("sigmoid", logits),
            f"{who}_positive_softmax": losses.positive_losses("softmax", logits),
        }
    for scoring in losses.SCORINGS:
        s = losses.score_matrix(scoring, *pair)
        assert not s.any() or np.abs(s - s.T).max() > 0.01, "images and captions exchanged would not show"
        case[scoring] = s
    s = losses.score_matrix("learnability", *pair)
    case["sets"] = [set_case(s, members, x) for members, x in SETS]
    return case


SETS = [([3], 0), ([1, 2, 3], 7), ([11, 0, 5, 8, 2], 4), ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 11)]


def set_case(s, members, x):
    """F(A), F(A ∪ {x}), the marginal of x, and the share of each member of A."""
    found = dict(members=members, x=x, batch_sum=losses.batch_sum(s, members))
    found["batch_sum_with_x"] = losses.batch_sum(s, [*members, x])
    found["marginal"] = losses.marginal(s, x, members)
    found["shares"] = [losses.share(s, member, members) for member in members]
    assert math.isclose(found["batch_sum_with_x"] - found["batch_sum"], found["marginal"], rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(sum(found["shares"]), found["batch_sum"], rel_tol=1e-9, abs_tol=1e-9)
    return found


def stored_scales():
    """A checkpoint stores ln α: what the loss of a pair is, and what it would be with the logarithm taken for α."""
    rows = []
    for stored, bias, similarity in itertools.product((math.log(10), math.log(100), 4.7671), (-10.0, -16.5), (0.1, 0.3)):
        scale = math.exp(stored)
        right, wrong = (float(losses.softplus(np.array(-(a * similarity + bias)))) for a in (scale, stored))
        assert abs(right - wrong) > 0.3
        rows.append(dict(stored=stored, logit_scale=scale, logit_bias=bias, similarity=similarity, positive_loss=right))
    return rows


def scores(learner, reference):
    large = [rescaled(model, given) for model, given in zip((learner, reference), LARGE)]
    equal = matrices("the same model twice", learner, learner)
    assert np.abs(equal["learnability"]).max() == 0
    cases = [matrices("own scales", learner, reference), matrices("large logits", *large), equal]
    return dict(cases=cases, stored_scales=stored_scales())


# independent.json


COSINE_DOUBT = 1e-5  # two cosines of f32 that lie closer may change places


def active_clip_case(learner, reference, gain, how, seed):
    """Half of the pool; the first seed from the given one where f32 cosines cannot change a pick."""
    scores, own_ids = independent.active_clip_score(learner, reference), ids()
    settings = draws.Settings(N // 2, 1, gain, how, seed)
    chunks = draws.independent_draw(scores, own_ids, settings)
    if min(chunks[0].gaps) < gain * COSINE_DOUBT:
        assert how == "noise", "a draw without noise is too close"
        return active_clip_case(learner, reference, gain, how, seed + 1)
    picks, best = draws.picks_of(chunks), field.top_k(scores, own_ids, N // 2)
    case = dict(gain=gain, draw=how, seed=settings.seed, n_kept=N // 2, scores=scores, picks=picks)
    case["gaps"] = chunks[0].gaps
    case["effective_samples"] = agreement.effective_number(gain * scores)
    case |= dict(mean_score_kept=float(scores[picks].mean()), mean_score_top_k=float(scores[best].mean()))
    return case | dict(overlap_with_top_k=agreement.overlap(picks, best))


NEGATIVES = [(i * 31 + 2) % N for i in range(20)]


def contrastive_case(name, objective, scoring, learner, reference, negatives, b):
    found = independent.contrastive_scores(objective, scoring, learner, reference, negatives, b)
    case = dict(name=name, objective=objective, scoring=scoring, negatives=negatives, sub_batch_size=b)
    return case | dict(learner=parameters(learner), reference=parameters(reference), scores=found)


def contrastive_cases(learner, reference):
    large = [rescaled(model, given) for model, given in zip((learner, reference), LARGE)]
    cases = []
    for objective in ("sigmoid", "softmax"):
        for scoring in losses.SCORINGS:
            cases.append(contrastive_case("20 negatives", objective, scoring, learner, reference, NEGATIVES, 32))
        cases.append(contrastive_case("b = 1", objective, "hard_learner", learner, reference, NEGATIVES, 1))
        cases.append(contrastive_case("large logits", objective, "learnability", *large, NEGATIVES, 4096))
        everyone = list(range(N))
        cases.append(contrastive_case("all others", objective, "learnability", learner, reference, everyone, N))
    whole = losses.batch_sum(losses.score_matrix("learnability", learner, reference), everyone)
    assert math.isclose(cases[5]["scores"].sum(), whole, rel_tol=1e-9), "shares of the whole sum to F"
    return cases


def class_act_case(name, spread, smoothing, n=12, n_classes=7):
    """Logits of two classifiers of n samples; `spread` is their standard deviation."""
    logits = [np.round(spread * planted.normals(11, stream, n, n_classes), 3) for stream in (1, 2)]
    labels = [(i * 5) % n_classes for i in range(n)]
    of_learner, of_reference = (independent.class_act_loss(l, labels, smoothing) for l in logits)
    own_ids = [("classes.tar", i) for i in range(n)]
    case = dict(name=name, label_smoothing=smoothing, labels=labels, ids=[list(i) for i in own_ids])
    case |= dict(learner_logits=f32_rows(logits[0]), reference_logits=f32_rows(logits[1]))
    case |= dict(learner_losses=of_learner, reference_losses=of_reference, learnability=of_learner - of_reference)
    case["top_4_by_learnability"] = field.top_k(of_learner - of_reference, own_ids, 4)
    return case | dict(top_4_by_easy_reference=field.top_k(-of_reference, own_ids, 4))


def ties_case():
    """Equal scores come in the order of their ids."""
    scores = np.array([0.5, 0.25, 0.5, 0.5, 0.25, -1.0, 0.25, 0.75, 0.5, -1.0, 0.75, 0.25])
    own_ids = ids()[: len(scores)]
    picks = draws.picks_of(draws.independent_draw(scores, own_ids, draws.Settings(7, 3, 1.0, "top_k", 0)))
    assert picks == field.top_k(scores, own_ids, 7)
    return dict(scores=scores, n_chunks=3, picks=picks)


def independent_selection(learner, reference):
    alpha = reference.logit_scale
    drawn = [(1.0, "noise", 1), (alpha, "noise", 2), (alpha, "top_k", 0)]
    classes = [("plain", 2.0, 0.1), ("no smoothing", 2.0, 0.0), ("strong smoothing", 2.0, 0.3), ("large logits", 60.0, 0.1)]
    return dict(
        active_clip=[active_clip_case(learner, reference, *how) for how in drawn],
        contrastive=contrastive_cases(learner, reference),
        class_act=[class_act_case(*case) for case in classes],
        ties=ties_case(),
    )


# calibrate.json


def calibrations(learner, reference):
    cases = []
    for who, model in (("learner", learner), ("reference", reference)):
        for rows in (list(range(N)), list(range(0, N, 2))):
            for b in (len(rows), 32, 4096):
                similarities = model.of(rows).similarities()
                scale, bias, loss = calibrate.calibrate(similarities, b)
                case = dict(model=who, rows=rows, sub_batch_size=b, logit_scale=scale, logit_bias=bias, loss=loss)
                start = calibrate.calibration_loss(similarities, 10.0, -10.0, b)
                cases.append(case | dict(loss_at_10_minus_10=start))
    return dict(cases=cases)


# agreement.json


def agreement_cases():
    u = np.round(planted.uniforms(13, 1, 60), 3).reshape(2, 30)
    a, b = np.round(u[0], 1), np.round(u[0] / 2 + u[1] / 2, 1)  # with ties
    halves = {name: sorted(field.top_k(values, ids()[:30], 10)) for name, values in (("a", a), ("b", b))}
    clusters = [int(6 * v * v) for v in u[1]]
    return dict(
        a=a,
        b=b,
        spearman=agreement.spearman(a, b),
        top_10_of_a=halves["a"],
        top_10_of_b=halves["b"],
        overlap=agreement.overlap(halves["a"], halves["b"]),
        clusters=clusters,
        effective_clusters=agreement.effective_clusters(clusters),
        log_weights=10 * a,
        effective_number=agreement.effective_number(10 * a),
        auc_of_a_above_b=agreement.auc(a, b),
    )


# planted.json


def planted_cases():
    pools = []
    for name, make in (("noisy", planted.noisy_pool), ("coarse", planted.coarse_pool)):
        pool = make(5, 500)
        models = {}
        for who, model in (("learner", pool.learner), ("reference", pool.reference)):
            shown = dict(image_0=model.x[0], caption_0=model.y[0], image_499=model.x[499], caption_499=model.y[499])
            models[who] = parameters(model) | shown
        own = dict(pool=name, seed=5, n_samples=500, kinds=pool.kind, concepts=pool.concept)
        pools.append(own | {who: models[who] for who in models})
    streams = []
    for seed, stream in ((1, 1), (1, 2), (2**63 + 9, 1_000_003)):
        case = dict(seed=seed, stream=stream, words=[str(w) for w in planted.words(seed, stream, 5)])
        streams.append(case | dict(uniforms=planted.uniforms(seed, stream, 5), normals=planted.normals(seed, stream, 1, 5)[0]))
    return dict(streams=streams, pools=pools)
