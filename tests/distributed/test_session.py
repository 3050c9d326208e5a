"""The Ray that is started for a command: its priority, where it is watched, what stops it."""

from __future__ import annotations

import os
import signal
import time
from urllib.request import urlopen

import psutil
import pytest
import ray

from raycrt.distributed.session import dashboard, session
from raycrt.system.interruption import raised

pytestmark = pytest.mark.cluster


def test_work_has_the_callers_priority_a_dashboard_and_groups_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    ray.shutdown()  # that of other tests
    others = set(psutil.Process().children(recursive=True))
    with raised("") as received, session(1):
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
        address = dashboard()
        assert address is not None
        assert address.startswith("http://127.0.0.1:")
        with urlopen(f"{address}/api/authentication_mode", timeout=30) as answer:
            assert b"token" in answer.read()
        children = set(psutil.Process().children(recursive=True)) - others
        assert {"gcs_server", "raylet"} <= {child.name() for child in children}
        # A signal to the group of the command reaches the command alone, and it raises there.
        assert os.getpgid(0) not in {os.getpgid(child.pid) for child in children}
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            ray.get(ray.remote(lambda: time.sleep(60)).remote())
        assert received == [signal.SIGTERM]
