"""What `raycrt verify` found in a run and when, as a note in the run: no proof, but a date.

The note names the files that were checked by their hash, so that it says nothing about others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pydantic import Field, ValidationError

from raycrt.specs.record import Record
from raycrt.system.places.outputs import write_atomically
from raycrt.system.places.storage import Place, content

_FILE = "verified/verdict.json"
_BLOCK = 2**20
_STATED = ("train/model.safetensors", "train/spec.yaml", "certificates/manifest.json")


class Verdict(Record):
    """The numbers of a check that ended `at` (ISO 8601, UTC), of the files with this `sha256`."""

    raycrt: str = Field(description="the version of the checker")
    at: str
    sha256: str
    images: int
    checked: int
    failed: int
    sound: bool

    def write(self, run: Place) -> Place:
        """Put this in place of the note in `run` and return its file; `OSError` where the run takes
        no files, or has a link to elsewhere in this place."""
        file = run / _FILE
        if file.parent.is_symlink():
            raise OSError(f"{file.parent} is a link")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (self.model_dump_json(indent=2) + "\n").encode())
        return file

    def about(self, run: Place) -> bool:
        """Whether the files in `run` are those that were checked."""
        return self.sha256 == fingerprint(run)


def read(run: Place) -> Verdict | None:
    """The note in `run`; None where there is none that can be read."""
    file = run / _FILE
    if not file.is_file() or file.stat().st_size > _BLOCK:
        return None
    try:
        return Verdict.model_validate_json(content(file))
    except ValidationError:
        return None


def fingerprint(run: Place) -> str | None:
    """SHA-256 over the lines `HASH  NAME` of the files that a check of `run` is about, as sha256sum
    writes them: weights, spec and manifest, then the files of rows in the order of their names.

    None where one of them is missing or not a plain file.
    """
    folder = run / "certificates" / "rows"
    found = folder.iterdir() if folder.is_dir() else ()
    rows = sorted(file.name for file in found if file.name.endswith(".parquet"))
    digest = hashlib.sha256()
    for name in (*_STATED, *(f"certificates/rows/{row}" for row in rows)):
        file = run / name
        if file.is_symlink() or not file.is_file():
            return None
        own = hashlib.sha256()
        for block in _blocks(file):
            own.update(block)
        digest.update(f"{own.hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _blocks(file: Place) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block
