"""`make bench`: `raycrt verify --workers 2` of many rows, and the memory of its processes.

    python -m tests.benchmarks.verification [--out FILE] [--rows N] [--data DIRECTORY]

The rows are those of `tests.benchmarks.scale`, certified first. Memory is that of a process alone
(USS), sampled every five seconds: the largest of any process in each quarter of the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from raycrt.distributed import stages
from raycrt.networks import network
from tests.benchmarks import write
from tests.benchmarks.scale import CLASSES, FEATURES, stored

_SECONDS = 5


def certified(home: Path, rows: int) -> Path:
    """A run with certificates of `rows` random inputs."""
    spec, run = stored(home, rows), home / "run"
    torch.manual_seed(0)
    model = network.build(spec.model, (FEATURES,), CLASSES)
    spec = stages.adopt(spec, model, spec.model, run / "train")
    stages.certify(spec, model, run / "certificates")
    return run


def largest(process: psutil.Process) -> float:
    """The largest memory, in MiB, that any of the process and what it started has for itself."""
    found = [0.0]
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            found.append(each.memory_full_info().uss / 2**20)
    return max(found)


def verified(run: Path) -> tuple[str, float, list[float]]:
    """The verdict, the seconds that it took, and the samples of memory."""
    command = [sys.executable, "-m", "raycrt", "verify", str(run), "--workers", "2"]
    began, samples = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as verifier:
        while verifier.poll() is None:
            samples.append(largest(psutil.Process(verifier.pid)))
            time.sleep(_SECONDS)
        assert verifier.stdout is not None
        said = verifier.stdout.read()
    assert verifier.returncode == 0, said
    return said.splitlines()[0], time.monotonic() - began, samples


def measured(home: Path, rows: int) -> dict[str, Any]:
    verdict, seconds, samples = verified(certified(home, rows))
    quarter = max(1, -(-len(samples) // 4))
    quarters = [samples[k : k + quarter] for k in range(0, len(samples), quarter)]
    return {
        "rows": rows,
        "verdict": verdict,
        "rows_per_second_with_start": rows / seconds,
        "largest_mib_by_quarter": [round(max(part)) for part in quarters],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/verification.json"))
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--data", type=Path, help="directory for the inputs, 3 KB a row")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.data) as home:
        write(measured(Path(home), asked.rows), asked.out)


if __name__ == "__main__":
    main()
