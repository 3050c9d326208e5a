"""`raycrt doctor`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path

import typer

from raycrt import __version__
from raycrt.errors import InvalidInput
from raycrt.specs import RunSpec
from raycrt.system import extras

# What a run of an hour writes, with Ray's logs, and more.
_LEAST_BYTES = 500 * 10**6
_GIB = 2**30


def doctor() -> None:
    """Check this machine: versions, packages, GPU, Ray, ports, data, disk, a line for each.

    Exit code 1 where a command would fail; the line then says what to do.
    """
    sound = True
    for name, check in _CHECKS.items():
        try:
            said = check()
        except InvalidInput as error:
            said, sound = f"WRONG: {error}", False
        except ModuleNotFoundError as error:
            said, sound = f"WRONG: {extras.lacking(error) or error}", False
        print(f"{name:<10}{said}", flush=True)
    if not sound:
        raise typer.Exit(1)


def _raycrt() -> str:
    where = Path(__file__).parents[2]
    if not any(entry.name == "demo" for entry in entry_points(group="raycrt.commands")):
        raise InvalidInput(
            f"raycrt must be installed, but it runs from the files in {where}, without `search`, "
            "`study` and `demo`: pip install 'raycrt[train]'"
        )
    return f"{__version__} in {where}"


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages() -> str:
    """Those of the extra `train`; `InvalidInput` for what is missing or is of another version than
    the one that is required."""
    missing, others, found = [], [], {}
    for name, pinned in _required():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if pinned not in (None, found[name].partition("+")[0]):
            others.append(f"{name} must be {pinned}, but is {found[name]}")
    if missing or others:
        lacks = [f"{', '.join(missing)} must be installed"] if missing else []
        raise InvalidInput(f"{'; '.join(lacks + others)}: pip install 'raycrt[train]'")
    return f"torch {found['torch']}, Ray {found['ray']} and {len(found) - 2} others are installed"


def _required() -> list[tuple[str, str | None]]:
    """The packages that raycrt and its extra `train` need, each with the version it is pinned to or
    None."""
    try:
        stated = requires("raycrt") or []
    except PackageNotFoundError:
        raise InvalidInput("raycrt must be installed, which tells what it needs") from None
    needed = []
    for text in stated:
        requirement, _, marker = text.partition(";")
        if "extra" in marker and not re.search(r"extra == .train.", marker):
            continue
        name = re.match(r"[\w.-]+", requirement)
        pinned = re.search(r"==\s*([\w.]+)", requirement)
        assert name is not None
        needed.append((name[0], pinned and pinned[1]))
    return needed


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch finds; commands run on CPUs"
    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    each = [f"{card.name}, {card.total_memory / _GIB:.0f} GiB" for card in cards]
    return f"{'; '.join(each)} (--gpus-per-worker 1 uses one)"


def _ray() -> str:
    from raycrt.distributed import preflight

    address = _address()
    if address is None:
        return preflight.local(RunSpec().least)
    try:
        return preflight.cluster(address)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; without RAY_ADDRESS, Ray starts on this machine") from None


def _address() -> str | None:
    """The cluster that commands join; None where each starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _ports() -> str:
    if _address() is not None:
        return "those of the cluster"
    try:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    except OSError as error:
        raise InvalidInput(
            f"Ray needs ports on 127.0.0.1, but none can be had: {error.strerror}; a sandbox or "
            "firewall must let this machine talk to itself"
        ) from None
    return "Ray takes free ones on 127.0.0.1"


def _data() -> str:
    from raycrt.data import DIRECTORY_VARIABLE
    from raycrt.data.named import sets

    # scikit-learn, of the extra `train`, brings the data.
    digits = ["digits"] if find_spec("sklearn") else []
    stated = os.environ.get(DIRECTORY_VARIABLE)
    if not stated:
        return (
            f"{', '.join(digits) or 'none'}; {DIRECTORY_VARIABLE} is not set, so others need "
            "--data-dir or a path"
        )
    root = Path(stated).expanduser()
    if not root.is_dir():
        raise InvalidInput(
            f"{DIRECTORY_VARIABLE}={stated} must name a directory; unset it, or make it"
        )
    found = [*digits, *sets.lying_in(root)]
    return f"{', '.join(found) or 'none'}; {DIRECTORY_VARIABLE} is {root}"


def _disk() -> str:
    # Ray makes its directory where there is none.
    ray = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    places = {
        "here": Path.cwd(),
        "for Ray": next(place for place in (ray, *ray.parents) if place.exists()),
    }
    try:
        tempfile.TemporaryFile(dir=places["here"]).close()
    except OSError as error:
        raise InvalidInput(
            f"{places['here']} must take files, but {error.strerror}: go to another directory, or "
            "name one with --out"
        ) from None
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    for name, size in free.items():
        if size < _LEAST_BYTES:
            raise InvalidInput(
                f"{places[name]} must have {_LEAST_BYTES / 1e6:.0f} MB free, but it has "
                f"{size / 1e6:.0f} MB; make room, or name another disk with --out or RAY_TMPDIR"
            )
    return ", ".join(f"{size / _GIB:.1f} GiB free {name}" for name, size in free.items())


_CHECKS: dict[str, Callable[[], str]] = {
    "raycrt": _raycrt,
    "Python": _python,
    "packages": _packages,
    "GPU": _gpu,
    "Ray": _ray,
    "ports": _ports,
    "data": _data,
    "disk": _disk,
}
