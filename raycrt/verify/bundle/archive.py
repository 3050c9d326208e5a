"""A zip archive from a stranger, unpacked into a directory of its own.

An archive holds plain files one after the other, not compressed, and nothing else: what it unpacks
to is no larger than itself, and no reader finds other files in it. `InvalidInput` states the first
thing that is otherwise, before anything is written.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from raycrt.errors import InvalidInput
from raycrt.specs import Place
from raycrt.verify.bundle.names import REQUIRED, belongs

# Larger archives need other headers.
_MOST_BYTES = 2**31 - 1
# Sizes of the header before a file, of its entry in the directory, and of the archive's end.
_HEADER, _ENTRY, _END = 30, 46, 22
_AT_ONCE = 2**20


def unpack(file: Place, place: Path) -> dict[str, str]:
    """Write the files of an archive below `place`, an empty directory; their SHA-256 by name."""
    try:
        size = file.stat().st_size
        if size > _MOST_BYTES:
            raise InvalidInput(f"a bundle has at most {_MOST_BYTES} bytes, but {file} has {size}")
        with file.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            _check(archive, raw, size)
            return {entry.filename: _write(archive, entry, place) for entry in archive.infolist()}
    except (
        *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError),
        *(UnicodeDecodeError, struct.error, RuntimeError),
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{file} must be a whole zip archive: {said}") from None
    except OSError as error:
        raise InvalidInput(f"{file} must be a file that can be read: {error}") from None


def _check(archive: zipfile.ZipFile, raw: BinaryIO, size: int) -> None:
    entries = archive.infolist()
    names = Counter(entry.filename for entry in entries)
    for entry in entries:
        name = entry.filename
        if not belongs(name) or entry.orig_filename != name:
            raise InvalidInput(
                f"a bundle holds no file {entry.orig_filename[:100]!r}, but this does"
            )
        if names[name] > 1:
            raise InvalidInput(f"a file is there once, but the bundle has several {name!r}")
        if not stat.S_ISREG(entry.external_attr >> 16) or entry.external_attr & 0xFFFF:
            raise InvalidInput(f"a bundle holds plain files, but {name!r} is none")
        if (entry.compress_type, entry.flag_bits) != (zipfile.ZIP_STORED, 0):
            raise InvalidInput(f"files in a bundle are stored as they are, but {name!r} is not")
    missing = sorted(REQUIRED - set(names))
    if missing:
        raise InvalidInput(f"a bundle must hold {missing[0]}, but this one does not")
    end = 0
    for entry in entries:
        if entry.header_offset != end or not _agrees(entry, raw):
            raise InvalidInput(f"files lie one after the other, but not so {entry.filename!r}")
        end += _HEADER + len(entry.filename) + entry.file_size
    listed = sum(_ENTRY + len(name) for name in names)
    if (archive.start_dir, end + listed + _END) != (end, size):
        raise InvalidInput("a bundle holds its files and nothing else, but this one has more bytes")


def _agrees(entry: zipfile.ZipInfo, raw: BinaryIO) -> bool:
    """Whether the header before a file says what the archive's directory says."""
    raw.seek(entry.header_offset)
    mark, *_, crc, packed, size, name, more = struct.unpack("<4s5H3I2H", raw.read(_HEADER))
    stated = (entry.CRC, entry.file_size, entry.file_size, len(entry.filename), 0)
    return (
        mark == b"PK\3\4"
        and entry.compress_size == entry.file_size
        and (crc, packed, size, name, more) == stated
    )


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> str:
    target, digest = place / entry.filename, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("xb") as written:
        while part := source.read(_AT_ONCE):
            digest.update(part)
            written.write(part)
    return digest.hexdigest()
