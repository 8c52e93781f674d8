"""Writes tests/golden/class_logits.json: what the two classifiers of the fixtures say of the class pool.

    python tests/oracle/class_logits.py

Needs Pillow, ONNX Runtime, webdataset, NumPy. Shares the reading of tars and the preprocessing with
fixtures/train/evaluate_classes.py, and nothing with superbatch: of each classifier the logits of the first photographs, and
how many of all are put into the class that stands in the tar.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "fixtures/train"))

from evaluate_classes import logits, read_pool  # noqa: E402

N_SHOWN = 12


def main() -> int:
    samples = read_pool(ROOT / "fixtures")
    label = np.array([sample["label"] for sample in samples])
    models = {}
    for name in ("class_learner", "class_reference"):
        found = logits(ROOT / "fixtures/models" / name, [sample["image"] for sample in samples])
        models[name] = {"logits": found[:N_SHOWN].astype(float).round(5).tolist(), "n_as_labelled": int((found.argmax(1) == label).sum())}
    (ROOT / "tests/golden/class_logits.json").write_text(json.dumps({"labels": label.tolist(), "models": models}) + "\n")
    print({name: model["n_as_labelled"] for name, model in models.items()}, "of", len(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
