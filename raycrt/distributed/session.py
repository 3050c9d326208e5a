"""How Ray starts: in one place, the same way for every command.

Inside a cluster or a job the address comes from RAY_ADDRESS. Elsewhere a local Ray is started: its
dashboard on loopback (never without one: Tune stops trials through it), token authentication on,
logs quiet. Its workers run at the caller's own priority: at Ray's niceness of 15 any other program
on the machine would come first.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services

from raycrt.distributed import preflight
from raycrt.errors import InvalidInput
from raycrt.system import interruption

_NICENESS = "RAY_worker_niceness"
_SECONDS_TO_LEAVE = 5.0


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a block; one that already runs is used and left running.

    `cpus` limits a local Ray and has no effect on a cluster. Raises `InvalidInput` where Ray could
    not start or join the cluster.
    """
    if ray.is_initialized():
        yield
        return
    _quiet()
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        preflight.check_address(address)
        _init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        preflight.check_machine()
        os.environ.setdefault(_NICENESS, "0")
        _init(
            address=address,
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        preflight.keep_token_private()
    patience = None
    try:
        yield
    except KeyboardInterrupt:
        # A signal to all processes has ended Ray as well, and then shutdown may never return.
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
    """Whether the Ray that this process has joined can still be reached."""
    return preflight.refusal(ray.get_runtime_context().gcs_address) is None


def _init(**options: Any) -> Any:
    """`ray.init`, which would also take SIGTERM for itself, and end the process without a word.

    Raises `InvalidInput` with Ray's own first line where Ray cannot be started or joined.
    """
    services.ConsolePopen = _Apart  # type: ignore[misc]
    with interruption.handlers_kept():
        try:
            return ray.init(**options)
        except SystemExit:
            raise interruption.Terminated from None
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise InvalidInput(f"Ray does not start: {said}") from error


class _Apart(services.ConsolePopen):
    """A process of a local Ray, in a group of its own: what is sent to the command's group, as
    timeout(1) sends SIGTERM and a terminal Ctrl-C, would end Ray under the command's feet."""

    def __init__(self, *command: Any, **options: Any) -> None:
        super().__init__(*command, **options, process_group=0)


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
    # That a local Ray asks for a token, as Ray has it by default, is no news to act on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
