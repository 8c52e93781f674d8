"""The whole job as one would write it in Python, beside `superbatch run pipelines/jest.toml` without its
clusters: shards to curated Parquet.

cargo build --release --locked
python3 benches/peers/job.py [--turns 5] [--times 1,4] [--threads 2]
                                        (needs numpy, Pillow, tokenizers, onnxruntime, webdataset, pyarrow)

The peer reads with webdataset, decodes and resizes with Pillow on a pool of threads while the models run, tokenizes and
embeds in batches of 64 with all threads inside an operator, draws super-batches of 400 by NumPy and writes Parquet with the
images and scores. Both sides take the fixture pool, so many times over under other shard names, and run in turns; of each turn
the ratio of wall clocks counts. Decoding and models overlap on both sides, so the phases of the peer are what its
main thread waits for. Prints Markdown tables: both sides; the seconds of the peer's phases and of superbatch's stages, by its
own log; and, where `perf` is installed, superbatch's CPU time by what it does, of one run more.
"""

import argparse
import io
import json
import re
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
# what a sample of CPU time is in, by library and function, in this order
DOES = [
    ("the models (ONNX Runtime)", r"^libonnxruntime"),
    ("the kernel: files, pages, waiting", r"^\[kernel"),
    ("decoding, resizing, normalising", r"embed::image|image_webp|jpe?g|jsimd|jinit|decode_mcu|h2v[12]|ycc_|fdeflate|png|gif|tiff"),
    ("tokenizing", r"tokeniz|regex|aho_corasick|unicode"),
    ("Parquet, compression, digests, tars", r"parquet|arrow|ZSTD|HUF_|FSE_|XXH|blake3|\btar::|superbatch::(read|storage|table|exchange)"),
    ("clusters, scores, draws", r"gemm|pulp|superbatch::(fold|tile|matrix|vector|divide|select|noise)"),
    ("copies and allocations (libc)", r"^libc\.|^libstdc"),
    ("the rest", r""),
]


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
            encoded = clock("tokenize", tokenizer.encode_batch, [sample[2].lower() for sample in batch])
            ids = np.array([e.ids for e in encoded], np.int64)
            images.append(unit(clock("models", vision.run, None, {vision.get_inputs()[0].name: pixels})[0]))
            captions.append(unit(clock("models", text.run, None, {text.get_inputs()[0].name: ids})[0]))

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
                embed(batch)
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


def median(values):
    """The median and the quartiles, or the values' own where there is one."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def shares(title, seconds, total):
    """A table of parts of a total, the largest first."""
    print(f"\n| {title} | seconds | share |\n|---|---|---|")
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    for name, value in [*parts, ("what is left: start, imports, the rest", total - sum(seconds.values()))]:
        print(f"| {name} | {value:.2f} | {100 * value / total:.0f} % |")


def stage_seconds(log):
    """Of each stage, its steps together, by the run's log."""
    seconds = {}
    for line in log.splitlines():
        fields = json.loads(line)["fields"] if line.startswith("{") else {}
        if fields.get("message") == "stage done":
            stage = fields["stage"].split(".")[0]
            seconds[stage] = seconds.get(stage, 0.0) + fields["secs"]
    return seconds


def cpu_shares(command, scratch):
    """Shares of a run's CPU time by what it does, by sampling."""
    record = scratch / "perf.data"
    perf = ["perf", "record", "--quiet", "--output", record, "--freq", "499", "--event", "cpu-clock"]
    subprocess.run([*perf, *command], cwd=ROOT, capture_output=True, check=True)
    report = ["perf", "report", "--input", record, "--stdio", "--no-children", "--sort", "dso,symbol", "--field-separator", ";"]
    lines = subprocess.run(report, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name: 0.0 for name, _ in DOES}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            share, library, function = (part.strip() for part in line.split(";", 2))
            name = next(name for name, pattern in DOES if re.search(pattern, f"{library} {function}"))
            found[name] += float(share.rstrip("%"))
    print("\n| superbatch's CPU time, by sampling | share |\n|---|---|")
    for name, share in found.items():
        print(f"| {name} | {share:.1f} % |")


def measure(times, options, scratch):
    """Runs both sides in turns over the pool, so many times over; prints a row, and returns the medians of where time went."""
    pool, seconds, stages, phases = scratch / f"pool{times}", [], [], []
    pool.mkdir()
    for copy in range(times):
        for shard in sorted((ROOT / "fixtures/pool").glob("*.tar")):
            shutil.copy(shard, pool / f"{copy:03}-{shard.name}")
    pipeline = scratch / "jest.toml"
    # the peer finds no clusters
    pipeline.write_text(re.sub(r"(?m)^\[divide\]\n(?!\[)(?:.*\n)*?(?=\[)", "", (ROOT / "pipelines/jest.toml").read_text()))
    ours = [ROOT / "target/release/superbatch", "run", pipeline, "--log-json",
            "--set", f"read.shards=['{pool}/*.tar']", "--set", "report={}", "--set", f"threads={options.threads}"]
    for _ in range(options.turns):
        output = scratch / "out"
        output.mkdir()
        theirs = [sys.executable, __file__, "--threads", str(options.threads), "--peer", pool, output]
        turn = []
        for command in ([*ours, "-o", output / "run"], theirs):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            turn.append(time.perf_counter() - start)
            if command is not theirs:
                stages.append(stage_seconds(done.stderr))
        said = json.loads(done.stdout)
        phases.append(said["phases"])
        seconds.append(turn)
        shutil.rmtree(output)
    of_ours, of_theirs = ([turn[side] for turn in seconds] for side in (0, 1))
    ratios = [theirs / ours for ours, theirs in seconds]
    print(f"| {said['n_read']:,} | {median(of_ours)} | {median(of_theirs)} | {median(ratios)} |", flush=True)
    middle = lambda turns: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return [*ours, "-o", scratch / "sampled"], middle(stages), statistics.median(of_ours), middle(phases), statistics.median(of_theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--times", default="1,4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        pool, output = map(Path, options.peer)
        n_read, n_kept, clock = peer(pool, output, options.threads)
        print(json.dumps({"n_read": n_read, "n_kept": n_kept, "phases": clock}))
        return
    print("| pairs read | superbatch, s | Python, s | Python over superbatch |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for times in map(int, options.times.split(",")):
            command, stages, of_ours, phases, of_theirs = measure(times, options, Path(scratch))
        shares("what Python's main thread waits for", phases, of_theirs)
        shares("superbatch's stages", stages, of_ours)
        if shutil.which("perf"):
            cpu_shares(command, Path(scratch))
        else:
            print("perf is not installed: no shares of CPU time", file=sys.stderr)


main()
