"""Completion in the shell: recipes, and the keys and values of `--set`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from raycrt import recipes as shipped
from raycrt.cli.about.keys import Key, keys
from raycrt.specs import strict_yaml

# What bash cuts words at, besides spaces.
_BREAKS = "=:"


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """The recipes that ship, and the YAML files of the working directory. Of none of them, and of
    paths with directories, the shell completes the names of files itself."""
    named = [(name, shipped.about(name)) for name in shipped.names()]
    files = [(file.name, "a file") for file in sorted(Path().glob("*.y*ml"))]
    return [each for each in named + files if each[0].startswith(incomplete)]


def overrides(incomplete: str) -> list[tuple[str, str]]:
    """The keys that begin as `incomplete` does; of one that is left, `key=value` for each value
    that it can have, or `key=` and its default: as two, so that the shell adds no space."""
    path, _, _ = incomplete.partition("=")
    found = [key for key in keys() if key.path.startswith(path)]
    if "=" in incomplete:
        found = [key for key in found if key.path == path]
    if len(found) != 1:
        return [(f"{key.path}=", key.meaning) for key in found]
    return _with_values(found[0])


def _with_values(key: Key) -> list[tuple[str, str]]:
    default = strict_yaml.in_line(key.default)
    notes = {default: "the default", "": key.meaning}
    values = key.choices or ("", default)
    return [(f"{key.path}={value}", notes.get(value, "")) for value in values]


@contextmanager
def words_of_bash() -> Iterator[None]:
    """Completion for bash, which cuts words at = and : and puts the reply in place of the last
    piece: the words are put together again, and the reply loses what precedes that piece."""
    if os.environ.get("_RAYCRT_COMPLETE") != "complete_bash":
        yield
        return
    last = int(os.environ["COMP_CWORD"])
    words, before = _joined(os.environ["COMP_WORDS"].split("\n")[: last + 1])
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    reply = io.StringIO()
    try:
        with redirect_stdout(reply):
            yield
    finally:
        for line in reply.getvalue().splitlines():
            print(line.removeprefix(before))


def _joined(pieces: list[str]) -> tuple[list[str], str]:
    """The words that `pieces` are of, and what of the last word precedes its last piece."""
    words, before, after_break = [""], "", False
    for piece in pieces:
        is_break = piece != "" and set(piece) <= set(_BREAKS)
        if is_break or (after_break and piece):
            before = words[-1] + piece * is_break
            words[-1] += piece
        else:
            before = ""
            words.append(piece)
        after_break = is_break
    # The reply to --set=train.gamma= is about what the option is given.
    return words[1:], before.partition("=")[2] if before.startswith("--") else before
