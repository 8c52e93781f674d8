"""The inputs that all golden files share: 96 samples of a coarse planted pool, and how numbers are written.

tests/golden/methods/README.md says what every file holds.
"""

import json
import math
from pathlib import Path

import numpy as np

import planted_pools as planted
from methods import losses

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "methods"
N, D, N_CONCEPTS = 96, 16, 6
SHARDS = ["b.tar", "a.tar", "ü.tar"]
NEAR_DUPLICATES = {9: 1, 13: 1, 40: 22}  # row → the row that its image repeats, but for a little noise
LARGE = ((100.0, -10.0), (160.0, -80.0))  # (α, β) of learner and reference: logits from about −200 to 90


def as_f32(matrix):
    return np.asarray(matrix, np.float32).astype(np.float64)


def make_pool():
    """The pool with embeddings rounded to f32, near-duplicates planted."""
    pool = planted.make_pool(7, N, N_CONCEPTS, (0.15, 0.2), planted.coarse_learner, D)
    noise = planted.unit_noise(7, 30, N, D)
    models = []
    for model in (pool.learner, pool.reference):
        x = model.x.copy()
        for row, of in NEAR_DUPLICATES.items():
            x[row] = planted.mix(x[of : of + 1], 0.05, noise[row])[0]
        # α and β of few digits, read as the same number everywhere
        models.append(losses.Model(as_f32(x), as_f32(model.y), round(model.logit_scale, 3), round(model.logit_bias, 3)))
    return *models, pool


def ids():
    return [(SHARDS[i % 3], (i * 37) % 101) for i in range(N)]


def caption_codes():
    """Equal numbers are byte-equal captions: rows 90 to 95 repeat the captions of 0 to 5."""
    return [1000 + i % 90 for i in range(N)]


def rescaled(model, scale_and_bias):
    return losses.Model(model.x, model.y, *scale_and_bias)


# Writing


def numbers(values, digits=10):
    """Nested lists of decimals of `digits` significant digits; NaN and infinity as null."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, dict):
        return {key: numbers(value, digits) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [numbers(value, digits) for value in values]
    if isinstance(values, (float, np.floating)):
        return float(f"{float(values):.{digits}g}") if math.isfinite(values) else None
    return values.item() if isinstance(values, np.generic) else values


def f32_rows(matrix):
    """Decimals that read as the same f32."""
    return [[float(str(np.float32(v))) for v in row] for row in np.asarray(matrix)]


def parameters(model):
    return dict(logit_scale=model.logit_scale, logit_bias=model.logit_bias)


def write(name, content):
    """One member a line, lists of objects one object a line."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = "[\n" + ",\n".join(json.dumps(numbers(v), ensure_ascii=False) for v in value) + "\n]"
        else:
            body = json.dumps(value if key in ("learner", "reference") else numbers(value), ensure_ascii=False)
        lines.append(f"{json.dumps(key)}: {body}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{name}.json: {len(text.encode()) / 1000:.0f} kB")
