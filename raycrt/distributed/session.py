"""The start of Ray, in one place and the same for every command.

Inside a cluster or a job the address comes from RAY_ADDRESS. Elsewhere a local Ray is started, with
its dashboard on loopback (always, as Tune stops trials through it), token authentication on and
quiet logs. Its workers run at the caller's own priority: at Ray's niceness of 15, any other program
on the machine would take precedence.
"""

from __future__ import annotations

import logging
import os
import sys
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
    """Ray for the duration of a block; one that is already running is used and left running.

    One that must be started or joined first, which takes a while, is announced on standard error.
    `cpus` limits a local Ray and has no effect on a cluster. Raises `InvalidInput` if Ray cannot
    start or join the cluster, which takes a node of it on this machine.
    """
    if ray.is_initialized():
        yield
        return
    _quiet()
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        preflight.check_address(address)
        preflight.check_node(address)
        print(f"joining Ray at {address} ...", file=sys.stderr, flush=True)
        _init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    else:
        preflight.check_machine()
        os.environ.setdefault(_NICENESS, "0")
        print("starting Ray (this may take half a minute) ...", file=sys.stderr, flush=True)
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
        # A signal sent to all processes has ended Ray as well; shutdown may then never return.
        patience = _SECONDS_TO_LEAVE
        raise
    finally:
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(patience)


def dashboard() -> str | None:
    """The address of the running Ray's dashboard for a browser; None if it has none."""
    running = _init(ignore_reinit_error=True, logging_level=logging.WARNING, log_to_driver=False)
    return f"http://{running.dashboard_url}" if running.dashboard_url else None


def lives() -> bool:
    """Whether the Ray that this process has joined can still be reached."""
    return preflight.refusal(ray.get_runtime_context().gcs_address) is None


def _init(**options: Any) -> Any:
    """`ray.init` without its own handler of SIGTERM, which would end the process silently.

    Raises `InvalidInput` with Ray's own message if Ray cannot be started or joined.
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
    """A process of a local Ray, in a process group of its own: a signal to the command's group, as
    timeout(1) and a terminal's Ctrl-C send, would end Ray while the command still needs it."""

    def __init__(self, *command: Any, **options: Any) -> None:
        super().__init__(*command, **options, process_group=0)


def _quiet() -> None:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Tune would handle Ctrl-C itself, and return as if all trials had ended.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for name in ("ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its notice that a local Ray requires a token, which is the default, needs no action.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
