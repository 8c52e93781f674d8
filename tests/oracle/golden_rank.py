"""Writes golden/rank.json: ranks and rank correlations by SciPy, for the tests of `src/rank.rs`.

python3 tests/oracle/golden_rank.py          (needs numpy, scipy)
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr


def largest(values, n):
    return set(np.argsort(-values, kind="stable")[:n].tolist())


def case(left, right):
    n_top = len(left) // 5
    return dict(
        left=left.tolist(),
        right=right.tolist(),
        left_ranks=rankdata(left, method="average").tolist(),
        spearman=float(spearmanr(left, right).statistic),
        n_both_of_largest=len(largest(left, n_top) & largest(right, n_top)),
    )


def main():
    rng = np.random.default_rng(7)
    cases = []
    for n, n_values in [(5, 3), (40, 1000), (40, 4), (101, 7), (60, 2)]:  # few values: many ties
        left = rng.integers(0, n_values, n) / 8
        right = left * rng.choice([-1, 1]) + rng.integers(-2, 3, n) / 8
        cases.append(case(left, right))
    cases.append(case(rng.normal(size=50), rng.normal(size=50)))
    path = Path(__file__).parent / "golden" / "rank.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


main()
