"""A zip archive whose bytes depend on its files alone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from raycrt.errors import require

_MOST_BYTES = 2**31 - 1
_WHEN, _PLAIN_FILE = (1980, 1, 1, 0, 0, 0), 0o100644 << 16


def packed(files: Mapping[str, bytes]) -> bytes:
    """`files` in the order of their names, not compressed, with one fixed time.

    What zlib makes of a file depends on its version. `InvalidInput` beyond 2 GiB, from which on
    archives have other headers.
    """
    size = sum(len(content) + 2 * len(name) + 76 for name, content in files.items()) + 22
    require(size <= _MOST_BYTES, f"a bundle has at most {_MOST_BYTES} bytes", bytes=size)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.create_system, entry.external_attr = 3, _PLAIN_FILE
            archive.writestr(entry, files[name])
    return buffer.getvalue()
