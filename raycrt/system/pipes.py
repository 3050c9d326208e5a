"""Output that is read no further, as in `raycrt study RUN | head`.

A command outlives the reader of its output: it does its work, writes its files and ends with its
own exit code. Without this the first print behind the end of `head` would end it.
"""

from __future__ import annotations

import io
import sys
from typing import Any


class _Unread(io.FileIO):
    """A file that takes everything, though nobody may read it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let standard output and standard error take what is printed after their readers have left."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: Any) -> Any:
    # Some callers put objects of their own in place of the standard streams.
    if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
        return stream
    stream.flush()
    raw = _Unread(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # As Python opens them: unbuffered ones have no buffer at all.
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
