"""Comparison of specs: the keys that identify a run, and the first one that differs.

Resources and the locations of files are never compared, except that the path of a source is what
names its data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from raycrt.errors import InvalidInput
from raycrt.specs import Spec
from raycrt.system.places.storage import Place

# The keys that decide the rows of a data set before any is held out for validation.
DATA = (
    *("data.name", "data.source", "data.path", "data.label", "data.input", "data.resize"),
    *("data.test", "data.split_seed", "data.limit", "data.shape", "data.class_names"),
    "data.scale",
)
# The keys that decide the weights. Up to rounding the number of workers does not: they share each
# batch and average gradients.
TRAINING = ("model", "train", *DATA, "data.validation", "data.normalize", "run.seed")
# The keys that decide the rows of certificates, beside the weights.
CERTIFICATES = ("model", *DATA, "data.key", "certify")


def difference(before: Spec, now: Spec, keys: tuple[str, ...]) -> tuple[str, Any, Any] | None:
    """The first key below `keys` whose values differ, with both of them."""
    trees = before.model_dump(mode="json"), now.model_dump(mode="json")
    for key in keys:
        first, second = trees
        for part in key.split("."):
            first, second = first[part], second[part]
        for found in _differing(key, first, second):
            return found
    return None


def refuse_another(
    directory: Place, what: str, before: Spec, now: Spec, keys: tuple[str, ...]
) -> None:
    """Raise `InvalidInput` if `now` differs in `keys` from `before`, the spec of `directory`.

    `what` names the content of `directory` in the message.
    """
    found = difference(before, now, keys)
    if found is not None:
        key, held, asked = found
        raise InvalidInput(
            f"{directory} holds {what} with {key}={as_option(held)}, but this command has "
            f"{key}={as_option(asked)}; --set {key}={as_option(held)} goes on with that run, and "
            "another run goes into another --out"
        )


def refuse_another_than_stored(
    directory: Place, what: str, now: Spec, keys: tuple[str, ...]
) -> None:
    """`refuse_another` with the spec that is stored in `directory`, if there is one."""
    if (directory / "spec.yaml").is_file():
        refuse_another(directory, what, Spec.load(directory), now, keys)


def as_option(value: Any) -> str:
    """A value as `--set` takes it."""
    return "null" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _differing(path: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(key for key in second if key not in first)]:
            yield from _differing(f"{path}.{key}", first.get(key), second.get(key))
    elif first != second:
        yield path, first, second
