"""The Ray that is started for a command: at whose priority it works, and where it is watched."""

from __future__ import annotations

import os
from urllib.request import urlopen

import pytest
import ray

from raycrt.distributed.session import dashboard, session

pytestmark = pytest.mark.cluster


def test_work_has_the_callers_priority_and_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    with session(1):
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
        address = dashboard()
        assert address is not None
        assert address.startswith("http://127.0.0.1:")
        with urlopen(f"{address}/api/authentication_mode", timeout=30) as answer:
            assert b"token" in answer.read()
