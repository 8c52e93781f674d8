"""How many, in exact integers: kept counts, super-batches, chunks, quotas; and the cost model. METHODS §3 and §5."""

from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction


def round_half_even(value):
    return round(Fraction(value))  # Python rounds halves of a Fraction to even


def kept_over_pool(n_samples, filter_ratio):
    """K = round-half-even(M(1−f)); `filter_ratio` is the decimal as text."""
    return round_half_even(n_samples * (1 - Fraction(filter_ratio)))


def super_batch_sizes(n_samples, super_batch_size):
    """max(1, round(n/B)) sizes that differ by at most one, the larger first."""
    n = max(1, round_half_even(Fraction(n_samples, super_batch_size)))
    return [n_samples // n + (s < n_samples % n) for s in range(n)]


def shared_by_size(n_kept, sizes):
    """⌊K·c_{s+1}/M⌋ − ⌊K·c_s/M⌋, c_s samples before part s."""
    n_samples, before, shares = sum(sizes), 0, []
    for size in sizes:
        shares.append(n_kept * (before + size) // n_samples - n_kept * before // n_samples)
        before += size
    return shares


def chunk_sizes(sub_batch_size, n_chunks):
    """⌊(t+1)b/T⌋ − ⌊tb/T⌋, T = min(n_chunks, b)."""
    b, n = sub_batch_size, min(n_chunks, sub_batch_size)
    return [(t + 1) * b // n - t * b // n for t in range(n)]


def largest_remainder(shares, total):
    """Whole numbers that sum to `total`; the largest remainders round up, ties go to the first."""
    floors = [int(s.to_integral_value(ROUND_FLOOR)) for s in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: (floors[c] - shares[c], c))
    for c in by_remainder[: total - sum(floors)]:
        floors[c] += 1
    return floors


def quotas(cluster_sizes, n_kept, weights):
    """q_c = min(n_c, λ·w_c) with Σ q_c = K, in 60 digits: (real quotas, whole quotas).

    `weights`: "proportional" w = n_c, "square_root" w = √n_c, "equal" w = 1.
    """
    with localcontext() as context:
        context.prec = 60
        weigh = {"proportional": Decimal, "square_root": lambda n: Decimal(n).sqrt(), "equal": lambda n: Decimal(n > 0)}
        w = [weigh[weights](n) for n in cluster_sizes]
        saturated = {c for c, n in enumerate(cluster_sizes) if n == 0}
        while True:
            rest = n_kept - sum(cluster_sizes[c] for c in saturated)
            open_ = [c for c in range(len(w)) if c not in saturated]
            lam = Decimal(rest) / sum(w[c] for c in open_) if open_ else Decimal(0)
            newly = {c for c in open_ if lam * w[c] >= cluster_sizes[c]}
            if not newly:
                break
            saturated |= newly
        real = [Decimal(n) if c in saturated else lam * w[c] for c, n in enumerate(cluster_sizes)]
        # A share that is a whole number but for its 60th digit is that number.
        real = [r.quantize(Decimal(1).scaleb(-40)) for r in real]
        return real, largest_remainder(real, n_kept)


# Cost relative to plain training, in which an example costs 3 units (forward 1, backward 2).


def cost_online(super_over_sub):
    """(B/b + 3 − 1)/3: the forward of the kept is reused."""
    return (super_over_sub + 3 - 1) / 3


def cost_flexi(super_over_sub, scorer_cost, learner_cost):
    """(c·B/b + 3·l)/3: an approximate scorer of cost c, half of the training at lower cost: l on average."""
    return (super_over_sub * scorer_cost + 3 * learner_cost) / 3


def cost_offline(super_over_sub, scorer_cost):
    """(c·B/b + 3)/3: no forward is reused."""
    return (scorer_cost * super_over_sub + 3) / 3


def cost_reference(super_over_sub, n_rounds):
    """(B/b)/3, divided by the rounds that reuse the reference's embeddings."""
    return super_over_sub / 3 / n_rounds
