"""Standard streams whose reader has exited, as in `raycrt study RUN | head`.

A command outlives the reader of its output: it does its work, writes its files and exits with its
own exit code. Without this, the first print after the exit of `head` would end the command.
"""

from __future__ import annotations

import io
import sys
from typing import Any


class _Unread(io.FileIO):
    """A pipe that accepts every write, and discards what is written after its reader has exited."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Make standard output and standard error accept writes after their readers have exited."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: Any) -> Any:
    # Some callers put objects of their own in place of the standard streams.
    if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
        return stream
    stream.flush()
    raw = _Unread(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # As Python opens its streams: an unbuffered one has no buffer at all.
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
