"""Writes tests/golden/methods/*.json, for the test `golden_methods.rs`; README.md there says what each file holds.

Written from METHODS.md, not from the Rust code: dense, in f64. Takes about a minute.

python3 tests/oracle/golden_methods.py          (needs numpy, scipy, scikit-learn and faiss-cpu)
"""

import check
import golden_divide
import golden_draws
import golden_field
import golden_scores
from golden_inputs import FOLDER, caption_codes, f32_rows, ids, make_pool, parameters, write


def pool_file(learner, reference):
    towers = {
        name: parameters(model) | dict(images=f32_rows(model.x), captions=f32_rows(model.y))
        for name, model in (("learner", learner), ("reference", reference))
    }
    return towers | dict(ids=[list(i) for i in ids()], caption_codes=caption_codes())


def main():
    check.main()
    learner, reference, pool = make_pool()
    write("pool", pool_file(learner, reference))
    write("scores", golden_scores.scores(learner, reference))
    write("joint_draws", golden_draws.joint_draws(learner, reference))
    write("plackett_luce", golden_draws.plackett_luce(learner, reference))
    write("counts", golden_draws.count_cases())
    write("independent", golden_scores.independent_selection(learner, reference))
    write("calibrate", golden_scores.calibrations(learner, reference))
    write("clusters", golden_divide.cluster_cases())
    write("hardness", golden_divide.hardness_cases(learner, reference, pool))
    write("field", golden_field.field_cases(learner, reference, pool))
    write("agreement", golden_scores.agreement_cases())
    write("planted", golden_scores.planted_cases())
    total = sum(file.stat().st_size for file in FOLDER.glob("*.json"))
    assert total < 1_000_000, f"{total} bytes"
    print(f"{total / 1000:.0f} kB in all")


if __name__ == "__main__":
    main()
