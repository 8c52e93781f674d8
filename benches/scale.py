"""Time and peak memory of a whole run over pools of 1, 4 and 16 times a size.

cargo build --release --locked
python3 benches/scale.py [--samples 4000] [--times 1,4,16] [--memory-limit-bytes 1073741824]

Shards are made on the fly: the fixture pool's samples, each under a new key with a caption of its own, 400 a shard. Every
pool is run by `pipelines/quickstart.toml` (read, embed, divide, select, write, report), in a process of its own whose peak
memory the system tells.
"""

import argparse
import io
import os
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARD = 400


def fixture_samples():
    samples = {}
    for shard in sorted((ROOT / "fixtures/pool").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.rsplit("/", 1)[-1].split(".", 1)
                samples.setdefault((shard.name, key), {})[extension] = tar.extractfile(member).read()
    whole = [parts for parts in samples.values() if "txt" in parts]
    return [[(extension, data) for extension, data in parts.items() if extension != "json"] for parts in whole]


def make_pool(folder, samples, n_samples):
    folder.mkdir()
    for start in range(0, n_samples, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05}.tar", "w") as tar:
            for row in range(start, min(start + SHARD, n_samples)):
                for extension, data in samples[row % len(samples)]:
                    data = data + f" {row}".encode() if extension == "txt" else data
                    member = tarfile.TarInfo(f"{row:09}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--memory-limit-bytes", type=int, default=1 << 30)
    options = parser.parse_args()
    samples = fixture_samples()
    print("| samples | seconds | samples a second | peak memory, MiB | run folder, MiB |\n|---|---|---|---|---|")
    for times in map(int, options.times.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            pool, run = Path(scratch) / "pool", Path(scratch) / "run"
            n_samples = options.samples * times
            make_pool(pool, samples, n_samples)
            command = [ROOT / "target/release/superbatch", "run", ROOT / "pipelines/quickstart.toml", "-o", run,
                       "--set", f"read.shards=['{pool}/*.tar']", "--set", "report={}",
                       "--set", f"memory_limit_bytes={options.memory_limit_bytes}"]
            start = time.perf_counter()
            child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - start
            assert status == 0, f"exit status {status}"
            size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
            print(f"| {n_samples:,} | {seconds:.1f} | {n_samples / seconds:.0f} | {usage.ru_maxrss / 1024:.0f} | {size / 2**20:.0f} |",
                  flush=True)


main()
