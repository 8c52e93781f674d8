"""The whole job as one would write it in Python, beside `superbatch run pipelines/jest.toml`: shards to curated Parquet.

cargo build --release --locked
python3 benches/peers/job.py [--turns 5] [--times 1] [--threads 2]
                                        (needs numpy, Pillow, tokenizers, onnxruntime, webdataset, pyarrow)

The peer reads with webdataset, decodes and resizes with Pillow on a pool of threads while the models run, tokenizes and
embeds in batches of 64 with all threads inside an operator, draws super-batches of 400 by NumPy and writes Parquet with the
images and scores. Both sides take the fixture pool, `--times` over under other shard names, and run in turns; of each turn
the ratio of wall clocks counts. Decoding and models overlap on both sides, so the phases of the peer are what its
main thread waits for.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BATCH, SUPER_BATCH, N_CHUNKS, FILTER_RATIO, GAIN = 64, 400, 16, 0.8, 6.0


class Clock(dict):
    """Seconds by phase."""

    def __call__(self, phase, step, *args):
        start = time.perf_counter()
        result = step(*args)
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - start
        return result


def peer(pool, output, n_threads):
    import numpy as np
    import onnxruntime
    import pyarrow
    import pyarrow.parquet
    import tomllib
    import webdataset
    from PIL import Image
    from tokenizers import Tokenizer

    clock = Clock()
    models = []
    for name in ["learner", "reference"]:
        folder = ROOT / "fixtures/models" / name
        manifest = tomllib.loads((folder / "model.toml").read_text())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        length = manifest["context_length"]
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id("<pad>"), pad_token="<pad>")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        sessions = [
            onnxruntime.InferenceSession(str(folder / f"onnx/{tower}_model.onnx"), options, providers=["CPUExecutionProvider"])
            for tower in ("vision", "text")
        ]
        models.append((manifest, tokenizer, sessions, [[], []]))

    def decode(sample):
        data = sample.get("jpg") or sample.get("png") or sample.get("webp")
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
        except Exception:
            return None
        pixels = (np.asarray(image, np.float32) / 255.0 - 0.5) / 0.5
        return sample["__key__"], data, sample["txt"].decode(), pixels.transpose(2, 0, 1)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed(batch):
        pixels = np.ascontiguousarray(np.stack([sample[3] for sample in batch]))
        for _, tokenizer, (vision, text), (images, captions) in models:
            ids = np.array([e.ids for e in tokenizer.encode_batch([sample[2].lower() for sample in batch])], np.int64)
            images.append(unit(vision.run(None, {vision.get_inputs()[0].name: pixels})[0]))
            captions.append(unit(text.run(None, {text.get_inputs()[0].name: ids})[0]))

    rows, batch = [], []
    urls = [str(path) for path in sorted(pool.glob("*.tar"))]
    with ThreadPoolExecutor(n_threads) as threads:
        waiting = []
        reader = iter(webdataset.WebDataset(urls, shardshuffle=False))
        while True:
            while len(waiting) < 4 * BATCH and reader is not None:
                sample = clock("read", next, reader, None)
                if sample is None:
                    reader = None
                else:
                    waiting.append(threads.submit(decode, sample))
            if not waiting:
                break
            decoded = clock("wait for decoding", waiting.pop(0).result)
            if decoded is not None:
                batch.append(decoded)
                rows.append(decoded[:3])
            if len(batch) == BATCH or (batch and not waiting and reader is None):
                clock("tokenize and embed", embed, batch)
                batch = []

    def softplus(l):
        return np.maximum(l, 0) + np.log1p(np.exp(-np.abs(l)))

    def select():
        rng, kept = np.random.default_rng(1), []
        embedded = [[np.concatenate(parts) for parts in model[3]] for model in models]
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), SUPER_BATCH):
            members = order[start : start + SUPER_BATCH]
            scores = 0
            for sign, (manifest, *_), (images, captions) in zip([1, -1], models, embedded):
                l = images[members] @ captions[members].T * manifest["logit_scale"] + manifest["logit_bias"]
                losses = softplus(l)
                np.fill_diagonal(losses, softplus(-np.diag(l)))
                scores = scores + sign * losses
            total, taken = np.diag(scores).copy(), np.zeros(len(members), bool)
            b = round(len(members) * (1 - FILTER_RATIO))
            for chunk in range(N_CHUNKS):
                size = (chunk + 1) * b // N_CHUNKS - chunk * b // N_CHUNKS
                if size:
                    weights = np.where(taken, -np.inf, GAIN * total + rng.gumbel(size=len(members)))
                    drawn = np.argpartition(-weights, size - 1)[:size]
                    taken[drawn] = True
                    total = total + scores[drawn].sum(0) + scores[:, drawn].sum(1)
            kept.append((members[taken], np.diag(scores)[taken]))
        return np.concatenate([k for k, _ in kept]), np.concatenate([s for _, s in kept])

    kept, scores = clock("select", select)

    def write():
        of = [rows[row] for row in kept]
        image = pyarrow.array([{"bytes": data, "path": key} for key, data, _ in of])
        names = ["key", "image", "caption", "score"]
        table = pyarrow.table([[key for key, *_ in of], image, [caption for *_, caption in of], scores], names)
        pyarrow.parquet.write_table(table, output / "curated.parquet")

    clock("write", write)
    return len(rows), len(kept), clock


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("turns", 5), ("times", 1), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        pool, output = map(Path, options.peer)
        n_read, n_kept, clock = peer(pool, output, options.threads)
        phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in clock.items())
        print(f"{n_kept} of {n_read} kept; {phases}")
        return
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        pool = Path(scratch) / "pool"
        pool.mkdir()
        for copy in range(options.times):
            for shard in sorted((ROOT / "fixtures/pool").glob("*.tar")):
                shutil.copy(shard, pool / f"{copy:03}-{shard.name}")
        for turn in range(options.turns):
            output = Path(scratch) / f"out{turn}"
            output.mkdir()
            ours = [ROOT / "target/release/superbatch", "run", ROOT / "pipelines/jest.toml", "-o", output / "run",
                    "--set", f"read.shards=['{pool}/*.tar']", "--set", "report={}", "--set", f"threads={options.threads}"]
            theirs = [sys.executable, __file__, "--threads", str(options.threads), "--peer", pool, output]
            seconds = []
            for command in (ours, theirs):
                start = time.perf_counter()
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                seconds.append(time.perf_counter() - start)
            embedded = next(line for line in done.stdout.splitlines() if "kept" in line)
            ratios.append(seconds[1] / seconds[0])
            print(f"superbatch {seconds[0]:.2f} s, Python {seconds[1]:.2f} s ({embedded})", flush=True)
            shutil.rmtree(output)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    print(f"Python / superbatch: {quartiles[1]:.2f} ({quartiles[0]:.2f} to {quartiles[2]:.2f})")


main()
