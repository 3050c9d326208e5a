"""A few deaths at random times; `make chaos` has a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import harness

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


def test_whoever_dies_each_row_is_there_once_and_the_same(tmp_path: Path) -> None:
    spec = harness.prepared(tmp_path)
    told = harness.survive(tmp_path, kills=4, seed=1)
    assert sum(told.deaths.values()) == 4
    harness.check(tmp_path, harness.twin(tmp_path, spec))
