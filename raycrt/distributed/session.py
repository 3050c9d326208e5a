"""How Ray starts: in one place, the same way for every command.

Inside a cluster or a job the address comes from RAY_ADDRESS. Elsewhere a local Ray is started: its
dashboard on loopback (never without one: Tune stops trials through it), token authentication on,
logs quiet. Its workers run at the caller's own priority, not at Ray's niceness of 15: they are the
work that was asked for, and beside any other program they would get next to nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raycrt import interruption

_NICENESS = "RAY_worker_niceness"
_TOKEN = Path.home() / ".ray" / "auth_token"
_SECONDS_TO_LEAVE = 5.0
_SECONDS_TO_ANSWER = 10.0


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a block; one that already runs is used and left running.

    `cpus` limits a local Ray and has no effect on a cluster.
    """
    if ray.is_initialized():
        yield
        return
    _quiet()
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        os.environ.setdefault(_NICENESS, "0")
        _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        if _TOKEN.is_file():
            _TOKEN.chmod(0o600)
    patience = None
    try:
        yield
    except KeyboardInterrupt:
        # A signal to a group of processes has ended Ray too, which cannot be left in order then.
        patience = _SECONDS_TO_LEAVE
        raise
    finally:
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(patience)


def dashboard() -> str | None:
    """The address of the running Ray's dashboard for a browser; none where it has none."""
    running = _init(ignore_reinit_error=True, logging_level=logging.WARNING, log_to_driver=False)
    return f"http://{running.dashboard_url}" if running.dashboard_url else None


def lives() -> bool:
    """Whether the Ray that this process has joined still answers."""
    return _answers(ray.get_runtime_context().gcs_address)


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def _init(**options: Any) -> Any:
    """`ray.init`, which would also take SIGTERM for itself, and end the process without a word."""
    with interruption.handlers_kept():
        try:
            return ray.init(**options)
        except SystemExit:
            raise interruption.Terminated from None


def _quiet() -> None:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Tune would take Ctrl-C for itself, and return as if all trials had ended.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for name in ("ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
