"""The index of a bundle: the SHA-256 of every other file."""

from __future__ import annotations

from pathlib import Path

from raycrt.errors import InvalidInput
from raycrt.verify.bundle.names import INDEX, VERSION
from raycrt.verify.table import read_json


def check(place: Path, digests: dict[str, str]) -> None:
    """Raise `InvalidInput` unless the unpacked files in `place`, with these `digests` by name, are
    those that the index lists."""
    index = read_json(place / INDEX)
    version, listed = index.get("version"), index.get("files")
    if type(version) is not int or version != VERSION:
        raise InvalidInput(f"version must be {VERSION} in {INDEX}, but is {str(version)[:50]}")
    if not isinstance(listed, dict):
        raise InvalidInput(f"files must be an object in {INDEX}")
    found = {name: digest for name, digest in digests.items() if name != INDEX}
    for name in sorted({*found, *listed}):
        if name not in found:
            raise InvalidInput(f"{name[:200]!r} is missing in the bundle, but {INDEX} lists it")
        if name not in listed:
            raise InvalidInput(f"{name!r} was added to the bundle: {INDEX} does not list it")
        if found[name] != listed[name]:
            raise InvalidInput(
                f"{name!r} was changed: its SHA-256 is {found[name]}, and in {INDEX} "
                f"{str(listed[name])[:64]}"
            )
