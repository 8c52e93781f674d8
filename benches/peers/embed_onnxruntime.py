"""The bare loop over ONNX Runtime in Python: how many images and captions a second with so many rows at once and threads
inside operators, by wall clock and by CPU time; a line of JSON each.

python3 benches/peers/embed_onnxruntime.py fixtures/models/learner          (needs numpy, onnxruntime)
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def sizes(folder):
    """What a graph leaves open: the side of an image, the tokens of a caption."""
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    text = json.loads((folder / "config.json").read_text())["text_config"]
    return processor.get("crop_size", processor["size"])["height"], text["max_position_embeddings"]


def rate(graph, side, n_tokens, n_threads, n_rows):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    rng, feed = np.random.default_rng(0), {}
    for tensor in session.get_inputs():
        is_ids = "int" in tensor.type
        shape = [n_rows] + [size if isinstance(size, int) else n_tokens if is_ids else side for size in tensor.shape[1:]]
        feed[tensor.name] = np.ones(shape, np.int64) if is_ids else rng.normal(size=shape).astype(np.float32)
    for _ in range(3):
        session.run(None, feed)
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < 1.0:
        session.run(None, feed)
        n += n_rows
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def main():
    folder = Path(sys.argv[1])
    side, n_tokens = sizes(folder)
    for name in ["vision_model", "text_model"]:
        for n_threads in [1, 2]:
            for n_rows in [1, 4, 8, 16, 64]:
                by_wall, by_cpu = rate(folder / f"onnx/{name}.onnx", side, n_tokens, n_threads, n_rows)
                found = {"graph": name, "threads": n_threads, "rows": n_rows, "a_second": by_wall, "a_cpu_second": by_cpu}
                print(json.dumps(found))


main()
