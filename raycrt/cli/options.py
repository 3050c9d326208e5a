"""The options that commands share, and the spec that they define."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycrt import recipes
from raycrt.cli.about import completion
from raycrt.errors import InvalidInput, require
from raycrt.specs import Spec, identity, parse_override
from raycrt.system.places.storage import Place, given

if TYPE_CHECKING:
    from raycrt.data.splits import Arrays, ArraySplits

Recipe = Annotated[
    str,
    typer.Option(
        metavar="RECIPE",
        autocompletion=completion.recipes,
        help="Name of a shipped recipe, or a path or URI of YAML.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.overrides,
        help="Override a key: section.key=value. May be repeated; `raycrt show RECIPE` lists keys.",
    ),
]


def found(text: str | None) -> Place | None:
    """The place that an option with `parser=str` names, a path or a URI whose store answers."""
    return None if text is None else given(text)


def all_found(texts: list[str]) -> list[Place]:
    """As `found`, for an argument with several values."""
    return [given(text) for text in texts]


def lasting(text: str | Place) -> Place:
    """As `found`; `InvalidInput` for a path that is relative in a Ray job, which runs in a copy of
    the project that is deleted later."""
    out = given(text)
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    require(out.is_absolute() or not in_job, "a run's path is absolute in a Ray job", path=str(out))
    return out


Out = Annotated[
    Place,
    typer.Option(
        callback=lasting,
        parser=str,
        metavar="RUN",
        help="Directory of the run, a path or a URI such as s3://bucket/run; created if missing.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Directory of the data sets; RAYCRT_DATA if not given."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data sets.")]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Number of training workers or certification actors: run.workers."
    ),
]
TrialWorkers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of training workers of each trial: search.workers."),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="GPUS",
        help="GPUs of each worker or actor: run.gpus_per_worker.",
    ),
]

DEFAULT_RECIPE = "digits"
DEFAULT_OUT = Path("runs/a")


def spec_from(
    recipe: str,
    overrides: list[str] | None,
    data_dir: Path | None,
    download: bool,
    *,
    idle: tuple[str, ...] = (),
    **shorthands: float | None,
) -> Spec:
    """The spec that the common options of a command define, as `stated_spec` has it, with its data
    set checked and described, and the layers of its `model.factory`."""
    stated = stated_spec(recipe, overrides, data_dir, download, idle=idle, **shorthands)
    from raycrt import data
    from raycrt.foreign import factory

    spec, rows = data.opened(stated)
    if rows is not None:
        remark(spec, rows)
    return factory.resolved(spec)


def remark(spec: Spec, rows: ArraySplits | Arrays) -> None:
    """Say on stderr what may be an oversight in some rows of the data."""
    from raycrt.data import description

    said = description.remark(spec.data, rows)
    if said is not None:
        print(said, file=sys.stderr)


def stated_spec(
    recipe: str,
    overrides: list[str] | None,
    data_dir: Path | None,
    download: bool,
    *,
    idle: tuple[str, ...] = (),
    **shorthands: float | None,
) -> Spec:
    """The spec that the common options of a command state, before its data set is read.

    `shorthands` are the values of options that stand for further keys, `section__key`; those that
    are None change nothing. `InvalidInput` where an option would have no effect: a key given twice,
    a changed value below one of the keys `idle`, which the command does not read, or a directory or
    download for a data set without files.
    """
    given = [parse_override(text) for text in overrides or []]
    given += [("data.directory", str(data_dir))] * (data_dir is not None)
    given += [("data.download", True)] * download
    given += [(k.replace("__", "."), v) for k, v in shorthands.items() if v is not None]
    values = dict(given)
    for key in values:
        require([k for k, _ in given].count(key) == 1, "a key is given once", key=key)
    own = recipes.load(recipe)
    spec = own.override(values)
    # Another data set has the defaults of keys that were about the one of the recipe.
    named = {key: values[key] for key in values if key in ("data.name", "data.source")}
    changed = identity.difference(own.override(named), spec, idle)
    if changed is not None:
        key, _, value = changed
        raise InvalidInput(f"{key}={value} has no effect on this command; leave it out")
    if spec.data.name == "digits" and (values.get("data.directory") or values.get("data.download")):
        raise InvalidInput(
            "--data-dir and --download have no effect on data.name=digits, which comes with "
            "scikit-learn; name another data set by a --recipe or --set data.name=..."
        )
    return spec
