"""Parts of the reference that are written when the site is built, from the program itself.

A comment `<!-- generated: NAME -->` in a page stands for the Markdown of `SOURCES[NAME]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import api
import commands
import keys

SOURCES: dict[str, Callable[[], str]] = {
    "commands": commands.markdown,
    "keys": keys.markdown,
    "layers": keys.layers,
    "api": api.markdown,
}
_MARK = re.compile(r"<!-- generated: (\w+) -->")
# On a code host the text of a link to a page is its file name; the site shows the page's title.
_NAMED_BY_FILE = re.compile(r"\[[\w-]+\.md\]\(([\w-]+\.md(?:#[\w-]+)?)\)")


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _written(app: Any, page: str, source: list[str]) -> None:
    text = _NAMED_BY_FILE.sub(r"[](\1)", source[0])
    source[0] = _MARK.sub(lambda mark: SOURCES[mark[1]](), text)
