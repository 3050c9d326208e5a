"""A node is drained while a model is trained: the notice of it leads to a checkpoint."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from raycrt.distributed.training import train as training
from raycrt.networks import checkpoint
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.hosts import awaited

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(560)]

EPOCHS = 1500
SECONDS = 25
# Without a notice only the first epoch and the last get a checkpoint.
TRAINING = f"""
import sys
from pathlib import Path
from raycrt.distributed import session
from raycrt.distributed.training import train
from raycrt.specs import validate
spec = validate({{
    "model": {{"width": 16}},
    "data": {{"limit": 300}},
    "train": {{"epochs": {EPOCHS}}},
    "run": {{"workers": 2}},
}})
with session.session():
    train.fit(
        spec,
        Path(sys.argv[1]),
        watch=lambda epoch, metrics: print("epoch", epoch, flush=True),
        seconds_between_checkpoints=1e6,
    )
"""


def last_epoch(out: Path) -> int:
    """The epoch of the newest checkpoint; 0 if there is none."""
    kept = training.last_checkpoint(out)
    return 0 if kept is None else checkpoint.load_state(kept)["epoch"]


def test_the_notice_that_a_node_leaves_leads_to_a_checkpoint(cluster: Cluster, say: Say) -> None:
    out, log = cluster.shared / "drained", cluster.shared / "drained.log"
    out.mkdir()
    cluster.up("one", "two")
    program = (sys.executable, "-c", TRAINING, str(out))
    with cluster.head.running(*program, log=log) as command:

        def reached(epoch: int) -> bool:
            assert command.poll() is None, log.read_text()
            return last_epoch(out) >= epoch

        awaited("the first checkpoint", lambda: reached(1), 240)
        assert last_epoch(out) == 1
        leaving = max(cluster.having("RayTrainWorker", "ALIVE"))
        cluster.drain(leaving, SECONDS)
        told = time.monotonic()
        waited = awaited("a checkpoint after the notice", lambda: reached(2))
        kept = last_epoch(out)
        say(f"checkpoint of epoch {kept} {waited:.0f} s after the notice")
        cluster.start("three")
        time.sleep(max(0.0, told + SECONDS - time.monotonic()))
        cluster.hosts[leaving].kill()
        awaited("the end of the training", lambda: command.poll() is not None, 240)
    said = log.read_text()
    assert command.returncode == 0, said
    assert 1 < kept < EPOCHS
    assert "three" in cluster.having("RayTrainWorker", "DEAD")
    epochs = [int(number) for number in re.findall(r"^epoch (\d+)$", said, re.MULTILINE)]
    again = [epoch for epoch, times in Counter(epochs).items() if times > 1]
    say(f"repeated {again} of {EPOCHS} epochs")
    assert epochs[-1] == EPOCHS
    # Each epoch after the notice has a checkpoint; Ray may not have taken the last two yet.
    assert len(again) <= 2 and all(epoch > kept for epoch in again)
