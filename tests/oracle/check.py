"""The oracle's own checks: cases worked out by hand, and identities that hold for any numbers.

python3 tests/oracle/check.py          (needs numpy and scipy)
"""

import math
from fractions import Fraction

import numpy as np

from methods import agreement, calibrate, clusters, counts, draws, field, hardness, independent, losses, noise

LN2 = math.log(2)


def near(found, expected, tolerance=1e-12):
    assert np.allclose(found, expected, rtol=0, atol=tolerance), f"{found} is not {expected}"


def some_models(n=14, d=6):
    rng = np.random.default_rng(5)
    towers = [clusters.unit(rng.normal(size=(n, d))) for _ in range(4)]
    return losses.Model(*towers[:2], 7.0, -2.0), losses.Model(*towers[2:], 15.0, -5.5)


def check_losses_by_hand():
    # x = e1, e2; y = e1, −e1; α = ln 3, β = 0: l = [[ln 3, −ln 3], [0, 0]].
    model = losses.Model(np.eye(2), np.array([[1.0, 0.0], [-1.0, 0.0]]), math.log(3), 0.0)
    logits = model.logits()
    near(logits, [[math.log(3), -math.log(3)], [0, 0]])
    near(losses.sigmoid_losses(logits), [[math.log(4 / 3), math.log(4 / 3)], [LN2, LN2]])
    # Image 0: ln(3 + ⅓) − ln 3; caption 0: ln(3 + 1) − ln 3. Image 1: ln 2; caption 1: ln(⅓ + 1).
    near(losses.softmax_losses(logits), [(math.log(10 / 9) + math.log(4 / 3)) / 2, (LN2 + math.log(4 / 3)) / 2])
    near(losses.positive_losses("sigmoid", logits), [math.log(4 / 3), LN2])
    near(losses.positive_losses("softmax", logits), [-math.log(3), 0])
    near(losses.softplus(np.array([-800.0, 0.0, 800.0])), [0, LN2, 800])


def check_sets_by_hand():
    s = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
    near(losses.batch_sum(s, [0, 2]), 1 + 4 + 64 + 256)
    near(losses.batch_learnability(s, [0, 2]), 162.5)
    near(losses.marginal(s, 1, [0, 2]), 16 + 2 + 8 + 32 + 128)
    near(losses.share(s, 0, [0, 2]), 1 + 34)
    logits, terms = draws.sigmoid_logits(s, [0])
    near(logits[1:], [16 + 2 + 8, 256 + 4 + 64])
    near(terms[1:], logits[1:])


def check_set_identities():
    learner, reference = some_models()
    for scoring in losses.SCORINGS:
        s = losses.score_matrix(scoring, learner, reference)
        for size in range(1, 10):
            rows = list(range(3, 3 + size))
            near(losses.marginal(s, 0, rows), losses.batch_sum(s, [0, *rows]) - losses.batch_sum(s, rows), 1e-10)
            near(sum(losses.share(s, x, rows) for x in rows), losses.batch_sum(s, rows), 1e-10)
            near(draws.sigmoid_logits(s, rows)[0][0], losses.marginal(s, 0, rows), 1e-10)
    near(losses.score_matrix("learnability", learner, learner), 0, 0)
    near(independent.active_clip_score(learner, learner), 0, 0)
    near(draws.softmax_logits("learnability", learner.logits(), learner.logits(), [2, 4])[0], 0, 0)
    # What sums both directions does not see images and captions exchanged; a matrix does.
    turned = [losses.Model(m.y, m.x, m.logit_scale, m.logit_bias) for m in (learner, reference)]
    s, transposed = losses.score_matrix("learnability", learner, reference), losses.score_matrix("learnability", *turned)
    near(s, transposed.T)
    assert np.abs(s - transposed).max() > 1


def check_counts_by_hand():
    kept = [counts.kept_over_pool(5, "0.5"), counts.kept_over_pool(3, "0.5"), counts.kept_over_pool(64, "0.999")]
    assert kept == [2, 2, 0]
    assert counts.kept_over_pool(10**10 + 1, "0.8") == 2 * 10**9
    assert counts.super_batch_sizes(25, 10) == [13, 12] and counts.super_batch_sizes(3, 10) == [3]
    assert counts.chunk_sizes(5, 16) == [1] * 5 and counts.chunk_sizes(7, 3) == [2, 2, 3]
    assert sum(counts.chunk_sizes(2048, 23)) == 2048
    assert counts.shared_by_size(4, [3, 3, 3]) == [1, 1, 2]
    # λ·(6, 3, 1) with K = 5: λ = ½.
    assert [float(q) for q in counts.quotas([6, 3, 1], 5, "proportional")[0]] == [3.0, 1.5, 0.5]
    assert counts.quotas([6, 3, 1], 5, "proportional")[1] == [3, 2, 0]  # the two halves tie: the first rounds up
    # Equal shares of 8: the cluster of 1 gives all it has, the others 3.5 each.
    assert [float(q) for q in counts.quotas([6, 4, 1], 8, "equal")[0]] == [3.5, 3.5, 1.0]
    # √: 3, 2, 1 of K = 12: λ = 2.
    assert counts.quotas([9, 4, 1], 12, "square_root")[1] == [7, 4, 1]
    near(counts.cost_online(5), 7 / 3)
    near(counts.cost_flexi(5, 0.28, 0.64), 1.10667, 1e-5)
    near([counts.cost_offline(5, 1), counts.cost_offline(5, 0.28)], [8 / 3, 4.4 / 3])
    near(counts.cost_reference(5, 4), 5 / 12)


def check_draws_by_hand():
    # Weights 1, 2, 3: first then second, 3/6 · 2/3.
    sequences = draws.exact_sequences(lambda drawn: np.log([1.0, 2.0, 3.0]), 1.0, 2, 1)
    near(sequences[(2, 1)], 1 / 3)
    near(sum(sequences.values()), 1)
    near(draws.exact_subsets(sequences)[(1, 2)], 1 / 3 + (2 / 6) * (3 / 4))
    # In two chunks the weights are renewed: after 2, sample 0 has weight 4.
    renewed = lambda drawn: np.log([4.0, 2.0, 3.0] if drawn else [1.0, 2.0, 3.0])
    near(draws.exact_sequences(renewed, 1.0, 2, 2)[(2, 1)], (3 / 6) * (2 / 6))
    # Without noise the largest come first, equals in the order of ids.
    ids = [("b", 0), ("a", 7), ("a", 10), ("é", 1)]
    assert noise.id_order(ids) == [2, 0, 1, 3]
    chunks = draws.independent_draw(np.array([1.0, 1.0, 1.0, 2.0]), ids, draws.Settings(3, 2, 1.0, "top_k", 0))
    assert [chunk.picks for chunk in chunks] == [[3], [1, 2]]
    # Softmax with one drawn: the two LSEs are the two logits themselves.
    l = np.array([[1.0, 2.0], [5.0, 3.0]])
    near(draws.softmax_model_logits(l, [])[0], [-1, -3])
    near(draws.softmax_model_logits(l, [1])[0][0], -1 + (2 + 5) / 2)


def check_gumbel_is_plackett_luce():
    learner, reference = some_models(n=4)
    logits_of = draws.logits_given("sigmoid", "learnability", learner, reference)
    expected = draws.exact_sequences(lambda drawn: logits_of(drawn)[0], 0.7, 2, 2)
    ids, n_draws = [("s.tar", i) for i in range(4)], 4000
    found = dict.fromkeys(expected, 0)
    for seed in range(n_draws):
        found[tuple(draws.picks_of(draws.draw(logits_of, ids, draws.Settings(2, 2, 0.7, "noise", seed))))] += 1
    for sequence, p in expected.items():
        assert abs(found[sequence] / n_draws - p) < 4.5 * math.sqrt(p * (1 - p) / n_draws), (sequence, p)


def check_independent_by_hand():
    l = np.log(np.array([[4.0, 1.0, 1.0], [2.0, 9.0, 1.0], [2.0, 1.0, 9.0]]))
    # b − 1 = 3, negatives 1 and 2: out ln(4 + 3·1) − ln 4, back ln(4 + 3·2) − ln 4.
    near(independent.contrastive_loss("softmax", l, 0, [1, 2], 4), (math.log(7 / 4) + math.log(10 / 4)) / 2)
    near(independent.contrastive_loss("sigmoid", l, 0, [1, 2], 4), math.log(5 / 4) + 3 * (math.log(2) + math.log(3)) / 2)
    # With all others and b = B it is the batch loss.
    near(independent.contrastive_loss("softmax", l, 0, [1, 2], 3), losses.softmax_losses(l)[0])
    # p = ½, ¼, ¼; y = 0, ε = 0.3: 0.7 ln 2 + 0.1 (ln 2 + 2 ln 4).
    near(independent.class_act_loss(np.log([[2.0, 1.0, 1.0]]), [0], 0.3), [0.7 * LN2 + 0.1 * 5 * LN2])


def check_clusters_by_hand():
    points = clusters.unit(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))
    centroids, n_steps = clusters.spherical_lloyd(points, points[[0, 2]])
    near(centroids, np.eye(2))
    found = clusters.assign(points, centroids)
    near([found.objective(), *found.margins], [0, 1, 1, 1, 1])
    near(clusters.seeding_chances(points, [0]), [0, 0, 0.5, 0.5])
    assert clusters.largest_cut([5, 1, 9], 8) == 3 and clusters.largest_cut([5, 1, 9], 15) == 9
    assert clusters.balanced_counts([5, 1, 9], 8, [2, 1, 0]) == [3, 1, 4]
    tree = dict(children=[dict(name="a", size=5), dict(children=[dict(name="b", size=1), dict(name="c", size=9)], order=[0, 1])])
    assert clusters.balanced_tree(tree | dict(order=[0, 1]), 7) == dict(a=4, b=1, c=2)


def check_hardness_by_hand():
    near(hardness.hardness(np.array([0.5, 0.5]), 0.1), 0.5)
    near(hardness.hardness(np.array([0.1 * math.log(2), 0.1 * math.log(4)]), 0.1), 0.1 * math.log(3))
    near(agreement.effective_number(np.log([2.0, 1.0, 1.0])), 16 / 6)
    near(agreement.effective_clusters([3, 3, 5, 5]), 2)
    learner, reference = some_models()
    everyone = list(range(1, 14))
    s = losses.score_matrix("learnability", learner, reference)
    own = hardness.hard_learnability("sigmoid", "learnability", learner, reference, 0, everyone, 14)
    near(own, losses.share(s, 0, range(14)), 1e-10)  # with all others and b = B: its share of the super-batch
    whole = field.full_loss_shares("sigmoid", "learnability", learner, reference, 14)
    near(whole.sum(), s.sum(), 1e-9)
    direct = [s[i, i] + 4 / 13 * sum((s[i, j] + s[j, i]) / 2 for j in range(14) if j != i) for i in range(14)]
    near(field.full_loss_shares("sigmoid", "learnability", learner, reference, 5), direct, 1e-10)


def check_field_by_hand():
    ids = [("a", 2), ("a", 1), ("b", 0), ("b", 1)]
    assert field.top_fraction([0.5, 0.5, 0.9, -1.0], ids, "0.5", 4) == [1, 2]
    assert field.top_fraction([0.5, 0.5, 0.9, -1.0], ids, "0.5", 10) == [0, 1, 2, 3]
    near(field.norm_sim(np.array([[0.6, 0.8]]), np.array([[1.0, 0], [0, -1]]), 2), 1)
    near(field.norm_sim(np.array([[0.6, 0.8]]), np.array([[1.0, 0], [0, -1]]), np.inf), 0.8)
    # One batch of two, τ = 1: 1 − ½[ln(e¹ + e⁰) + ln(e¹ + e²)], and −ln 2 where the batch should have been 4.
    similarities = np.array([[1.0, 0.0], [2.0, 1.0]])
    expected = 1 - (math.log(math.e + 1) + math.log(math.e + math.e**2)) / 2
    near(field.neg_clip_loss(similarities, [[[0, 1]]], 1.0, 2)[0], expected)
    near(field.neg_clip_loss(similarities, [[[0, 1]]], 1.0, 4)[0], expected - LN2)
    # A chain a–b–c at 30° each, ε so that only neighbours are near: b and c go, c by b which was dropped itself.
    z = np.array([[math.cos(a), math.sin(a)] for a in np.radians([0, 30, 60])])
    found = field.sem_dedup(z, [0, 0, 0], [0.1, 0.2, 0.3], ids[:3], 0.2)
    assert found.before == {1: [0], 2: [1]} and found.most_similar == {1: 0, 2: 1}
    assert field.decontaminate(z, dict(e=z[:1], f=-z[:1]), 0.8).n_by_set == dict(e=2, f=0)
    # Certain scores: 0 first, then with a penalty of 200 the other, then 0 again.
    repeats = field.soft_cap([150.0, 0.0], ids[:2], 3, 1, 200.0, seed=1)
    assert repeats == [[0], [1], [0]]


def check_calibration():
    learner, _ = some_models(n=40)
    s = losses.Model(learner.x, clusters.unit(learner.x + learner.y), 1, 0).similarities()
    scale, bias, loss = calibrate.calibrate(s, 40)
    logits = scale * s + bias
    near(loss, losses.sigmoid_losses(logits).sum() / 40, 1e-12)
    # At the minimum the mean of the probabilities is the share of the positives: Σ σ(l) = Σ [positive].
    near((1 / (1 + np.exp(-logits))).sum(), 40, 1e-6)
    for step in ([0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]):
        assert calibrate.calibration_loss(s, scale + step[0], bias + step[1], 40) > loss


def check_agreement():
    near(agreement.spearman([1, 2, 3], [1, 3, 2]), 0.5)
    near(agreement.auc([2, 3], [1, 2]), 3.5 / 4)
    near(agreement.overlap([1, 2, 3], [3, 4, 5]), 1 / 3)
    assert counts.round_half_even(Fraction(5, 2)) == 2


def main():
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    for check in checks:
        check()
    print(f"{len(checks)} groups of checks passed")


if __name__ == "__main__":
    main()
