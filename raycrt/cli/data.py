"""`raycrt data`."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer

from raycrt.cli.options import DEFAULT_RECIPE, DataDir, Download, Overrides, lasting, stated_spec
from raycrt.errors import InvalidInput
from raycrt.specs.data import DataName
from raycrt.system.places.storage import is_uri, place


def data(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A named set, a source such as torchvision:SVHN or module:function, or a path.",
        ),
    ],
    set_: Overrides = None,
    out: Annotated[
        Path,
        typer.Option(
            callback=lasting, metavar="FILE", help="File for the picture of the first inputs."
        ),
    ] = Path("data.png"),
    data_dir: DataDir = None,
    download: Download = False,
) -> None:
    """Read a data set, check it, and describe it: shape, range, rows of each class and split.

    The kind of a path is found by its files. The last line has the options for other commands.
    """
    from raycrt import data as sets
    from raycrt.data import description

    if out.suffix != ".png" or out.is_dir() or not _may_be_made(out.parent):
        raise InvalidInput(f"--out must be a .png file that can be made, but got {out}")
    given = named(what) + (set_ or [])
    stated = stated_spec(
        DEFAULT_RECIPE,
        given,
        data_dir,
        download,
        idle=("model", "train", "certify", "search", "run"),
    )
    described, rows = sets.opened(stated)
    spec = described.data
    names, found = sets.class_names(spec), sets.read(spec) if rows is None else rows
    print(f"data: {spec.title}")
    print("\n".join(description.lines(found, names)))
    label = sets.label(spec)
    told = (
        None if label is None else f"labels: {label}",
        f"units of radii: {spec.units}",
        description.remark(spec, found),
        description.advice(spec, found),
    )
    print("\n".join(filter(None, told)))
    out.parent.mkdir(parents=True, exist_ok=True)
    description.draw(found.train if len(found.train) else found.test, names, out)
    print(f"picture: {out}")
    print("options: " + shlex.join(part for text in given for part in ("--set", text)))


def _may_be_made(directory: Path) -> bool:
    """Whether a directory is there, or nothing stands in its way."""
    return next(place for place in (directory, *directory.parents) if place.exists()).is_dir()


def named(what: str) -> list[str]:
    """The overrides that name the data set `what`."""
    return [f"{key}={_as_yaml(value)}" for key, value in _chosen(what).items()]


def _as_yaml(text: str) -> str:
    """A kind, a name or an absolute path as the value of `--set`, in quotes where it needs them."""
    return text if re.fullmatch(r"[\w./:+-]+", text) else json.dumps(text)


def _chosen(what: str) -> dict[str, str]:
    """The keys of a spec that name the data set `what`."""
    from raycrt.data.sources import SOURCES, detect

    if what in get_args(DataName):
        return {"data.name": what}
    if is_uri(what):
        return {"data.source": detect(place(what)), "data.path": what}
    if os.path.exists(os.path.expanduser(what)):
        path = Path(os.path.abspath(os.path.expanduser(what)))
        return {"data.source": detect(path), "data.path": str(path)}
    if what in SOURCES or (":" in what and "/" not in what.partition(":")[0]):
        return {"data.source": what}
    raise InvalidInput(
        f"a data set must be one of {', '.join(get_args(DataName))}, a source or a path, but there "
        f"is nothing at {what}"
    )
