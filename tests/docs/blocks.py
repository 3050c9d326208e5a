"""The fenced blocks of a page, and a page as a program.

`python` and `console` blocks of a page run in its order, in one directory; `yaml` blocks are parts
of specs; `text` is for everything else. A comment in front of a block
says what is special about it:

    <!-- not run: REASON -->     it is checked, not run
    <!-- output -->              a `text` block with lines that the commands above it print, any
                                 numbers in them replaced
    <!-- python CODE -->         a block that is run and not shown, in lines of its own
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Pages that are no part of the site, whose commands have to exist all the same.
OTHERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|output)(?:: (?P<reason>[^\n]*?))? -->\n)?"
    r"(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^ *```$"
    r"|^<!-- (?P<unseen>python|console)\n(?P<unseen_code>.*?)^-->$",
    re.M | re.S,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a page, with the mark in front of it and the line on which its code begins."""

    language: str
    code: str
    mark: str | None
    reason: str | None
    line: int
    shown: bool

    @property
    def runs(self) -> bool:
        return self.language in ("python", "console") and self.mark != "not run"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order."""
    text = page.read_text()
    return [
        Block(
            language=found["unseen"] or found["language"],
            code=textwrap.dedent(found["unseen_code"] or found["code"] or ""),
            mark=found["mark"],
            reason=found["reason"],
            line=text.count("\n", 0, found.start("unseen_code" if found["unseen"] else "code")) + 1,
            shown=found["unseen"] is None,
        )
        for found in _BLOCK.finditer(text)
    ]


def run(page: Path, directory: Path) -> dict[str, Any]:
    """Run a page in `directory`, the working directory; return the names of its Python."""
    names: dict[str, Any] = {"__name__": "page"}
    said = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.mark == "output":
            for line in filter(None, block.code.splitlines()):
                assert _shape(line) in _shape(said), f"{where}: {line!r} is not in {said!r}"
        elif block.runs and block.language == "console":
            said = _shell(block.code, directory, where)
        elif block.runs:
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(page), "exec"), names)
    return names


def _shell(code: str, directory: Path, where: str) -> str:
    """What the commands print, all of which must end with exit code 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=directory,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _shape(text: str) -> str:
    """`text` with one sign for each number and for each run of spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(?:[.,]\d+)*", "N", text)).strip()
