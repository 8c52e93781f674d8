#!/usr/bin/env python3
"""Recomputes the numbers of a run folder from the run folder alone, and compares.

    python tests/oracle/run_folder.py RUN [--tolerance 5e-6] [--without-images]

In: `plan.json`, the committed Parquet files, and for the image bytes the tars of the pool. Out: one line a check,
with the largest error and the number of values compared. Exit code 1 if a check fails or compared nothing.

Written from METHODS.md in NumPy, in f64 and dense form, without a look at the Rust. A NaN stands for a null.
Rows are positions in the pool, in the order of (shard, sample_idx); in a score matrix row = image, column = caption.
The checks stand in `run_checks/`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from run_checks.clustered import (
    check_assignment, check_banks, check_hard_learnability, check_hardness, check_select_carries_divide,
)  # fmt: skip
from run_checks.curated import check_curated, check_finite, check_image_bytes
from run_checks.divided import read_divided
from run_checks.embedded import check_embeddings, check_markers, check_samples
from run_checks.models import Scores, method_of
from run_checks.report import Report
from run_checks.selected import check_conservation, check_counts, check_dealing, check_draws, check_scores
from run_checks.stored import RunFolder


def check_run(run, report, tolerance, with_images):
    report.section(check_markers, run, report)
    samples = run.frame("samples")
    is_read = np.array([text is None for text in samples.texts("rejection")])
    models = {name: run.model(name, samples) for name in ("learner", "reference")}
    present = [model for model in models.values() if model is not None]
    is_usable = is_read & np.all([model.has for model in present], axis=0)
    report.section(check_samples, run, samples, report)
    for model in present:
        report.section(check_embeddings, samples, is_read, model, report)
    select = run.frame("select")
    row = samples.rows_of(select.identity)
    scores = Scores(method_of(run.step), models["learner"], models["reference"])
    report.section(check_conservation, run, samples, is_read, is_usable, select, report)
    report.section(check_finite, [select], report)
    report.section(check_scores, row, select, models, scores, report, tolerance)
    kept = report.section(check_counts, select, scores, report)
    report.section(check_dealing, run, select, report)
    report.section(check_draws, run, samples, row, select, scores, report)
    if run.plan.get("divide"):
        divided = read_divided(run, samples, models)
        report.section(check_finite, [divided.stored], report)
        report.section(check_assignment, run, divided, is_read, is_usable, report, tolerance)
        report.section(check_banks, run, samples, divided, report)
        report.section(check_hardness, run, samples, divided, report, tolerance)
        report.section(check_select_carries_divide, samples, row, select, divided, report)
        report.section(check_hard_learnability, row, select, divided, models, scores, kept, report)
    report.section(check_curated, run, samples, select, report)
    if with_images:
        report.section(check_image_bytes, run, samples, report)


def main():
    parser = argparse.ArgumentParser(description="Recomputes the numbers of a run folder and compares.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--tolerance", type=float, default=5e-6, help="of a cosine; that of other numbers follows from it")
    parser.add_argument("--without-images", action="store_true", help="curated/ was written without its image column")
    options = parser.parse_args()
    run, report = RunFolder(options.run.resolve()), Report()
    try:
        method_of(run.step)
    except ValueError as error:
        parser.error(str(error))
    report.section(check_run, run, report, options.tolerance, not options.without_images)
    print(f"{report.n_passed} passed, {report.n_failed} failed")
    return 1 if report.n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
