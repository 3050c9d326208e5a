"""`raycrt init`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from raycrt.cli.data import named
from raycrt.cli.options import DEFAULT_RECIPE, DataDir, Download, Overrides, lasting, stated_spec
from raycrt.errors import InvalidInput
from raycrt.specs import ModelSpec, Spec, strict_yaml
from raycrt.system.places.outputs import made, write_atomically
from raycrt.system.places.storage import Place

if TYPE_CHECKING:
    from raycrt.api.recipe import Start

RECIPE = "recipe.yaml"
# Sections of a recipe that a person changes, in this order.
_SECTIONS = ("data", "model", "train", "certify", "search", "run")


def init(
    out: Annotated[
        Place,
        typer.Argument(
            parser=str,
            metavar="DIR",
            callback=lasting,
            help="Directory of the run; created if missing.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="A named set, a source such as torchvision:SVHN or module:function, or a path.",
        ),
    ],
    set_: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="MINUTES",
            help="How long search and training may take on this machine.",
        ),
    ] = 10.0,
) -> None:
    """Look at a data set and write a recipe to start with, DIR/recipe.yaml.

    It states what was read, and chooses network, radii, epochs and search space by the rows, so
    that search and training take about MINUTES here; starting Ray and certification come on top.
    --set takes keys of `data`.
    """
    file = out / RECIPE
    if file.exists():
        raise InvalidInput(f"{file} must not exist yet; remove it, or name another directory")
    given = named(data) + (set_ or [])
    stated = stated_spec(DEFAULT_RECIPE, given, data_dir, download, idle=_SECTIONS[1:])
    from raycrt import data as sets
    from raycrt.api import recipe
    from raycrt.data import description, tensors

    spec, rows = sets.opened(stated)
    arrays = sets.read(spec.data) if rows is None else rows
    if not len(arrays.train):
        sets.require_training_rows(spec.data)
    if not any(text.startswith(("data.scale", "data.normalize")) for text in given):
        # Columns of a table have units of their own; pixels have one.
        key = "scale" if len(sets.shape(spec.data)) == 1 else "normalize"
        spec, rows = sets.with_numbers(spec.override({f"data.{key}": "auto"}), arrays)
        assert rows is not None
        arrays = rows
    print(f"data: {spec.data.title}")
    print("\n".join(description.lines(arrays, sets.class_names(spec.data))))
    remark = description.remark(spec.data, arrays)
    if remark is not None:
        print(remark)
    model = ModelSpec(normalize=spec.model.normalize)
    spec = Spec().model_copy(update={"data": spec.data, "model": model})
    start = recipe.start(spec, tensors.Dataset.of(arrays), minutes)
    heading = _heading(start, minutes)
    write_atomically(made(out) / RECIPE, (heading + _text(start.spec)).encode())
    print(heading, end="")
    print(f"recipe: {file}")
    print("next:")
    where = shlex.quote(str(file)), shlex.quote(str(out))
    print("  raycrt demo --recipe {} --out {}      # search, train, certify, report".format(*where))
    print("  raycrt verify {1}".format(*where))


def _heading(start: Start, minutes: float) -> str:
    """Comments that say what the numbers were chosen by."""
    train = start.spec.train
    training = train.epochs * start.seconds / 60
    total = f"{start.minutes:.2g}"
    more = ""
    if float(total) > minutes:  # As it is printed: 1.04 is no more than 1.
        more = (
            f"# That is more than the {minutes:g} asked for, with the fewest epochs that a first "
            "recipe has.\n"
        )
    return (
        f"# The nearest training row of another class is {start.distance:.3g} away (median). No "
        "classifier that is right\n# on both has a radius above half of that; this recipe trains "
        f"for {train.radius:g}.\n"
        f"# On this machine an epoch takes {start.seconds:.2g} s: {train.epochs} epochs take "
        f"{training:.2g} minutes, search and training\n# together about "
        f"{total}.\n{more}"
    )


def _text(spec: Spec) -> str:
    """The sections of a recipe, without keys that have their default."""
    # `model.normalize` follows from the data.
    tree = spec.model_dump(mode="json", exclude_defaults=True, exclude={"model": {"normalize"}})
    return "".join(strict_yaml.write({key: tree[key]}) for key in _SECTIONS if key in tree)
