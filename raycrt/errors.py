"""One error for bad input: the invariant that must hold, then the values received."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InvalidInput(ValueError):
    """Input breaks a stated invariant. Raised before any work starts; commands exit with 2."""


def require(condition: bool, invariant: str, **values: object) -> None:
    """Raise `InvalidInput` naming `invariant` and the received `values` unless `condition`.

    >>> require(False, "radius > 0", radius=-1)
    Traceback (most recent call last):
    ...
    raycrt.errors.InvalidInput: `radius > 0` must hold, but got (radius=-1)
    """
    if not condition:
        received = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InvalidInput(f"`{invariant}` must hold, but got ({received})")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that it resembles, if any does."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest known is {close[0]!r}" if close else ""
