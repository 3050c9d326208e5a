"""Every page keeps its word: its blocks parse, its commands have the options that it uses, and what
can run here runs."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from raycrt.activations import ACTIVATIONS
from raycrt.bounds.enclosure import forms as solver
from raycrt.cli.main import assembled
from raycrt.specs import Spec, paths, strict_yaml, validate
from raycrt.verify.enclosure import forms as checker
from tests.docs.blocks import OTHERS, PAGES, ROOT, blocks, run

LANGUAGES = {"python", "console", "yaml", "text", "{toctree}"}
# A page without commands takes as long as its Python; others start Ray.
SHORT = [p for p in PAGES if {b.language for b in blocks(p) if b.runs} == {"python"}]
LONG = [p for p in PAGES if any(b.runs and b.language == "console" for b in blocks(p))]
MEASURED = {"own-network.md", "python.md"}


def _name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_blocks_are_what_they_say(page):
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, where
        assert block.mark != "not run" or block.reason, where
        assert block.mark != "output" or block.language == "text", where
        if block.language == "python":
            compile(block.code, where, "exec")
        elif block.language == "yaml":
            validate(strict_yaml.parse(block.code, where))
    fences = re.findall(r"^ *```", page.read_text(), re.M)
    assert len(fences) == 2 * sum(block.shown for block in blocks(page))
    indented = re.findall(r"^    (?:raycrt|python|pip|make) .*", page.read_text(), re.M)
    code = "".join(block.code for block in blocks(page))
    assert not [line for line in indented if line.strip() not in code], "commands stand in fences"


@pytest.fixture(scope="module")
def options():
    """The options of each command."""
    commands = get_command(assembled()).commands
    return {
        name: {word for each in command.params for word in (*each.opts, *each.secondary_opts)}
        for name, command in commands.items()
    }


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=_name)
def test_commands_have_the_options_that_pages_give_them(page, options):
    for command, given in _commands(page):
        assert command in options, f"{page.name}: there is no command raycrt {command}"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", given):
            assert option in {*options[command], "--help"}, f"raycrt {command} {option}"
        for key in re.findall(r"--set '?([\w.]+)=", given):
            assert any(key == path or key.startswith(f"{path}.") for path in KEYS), key


KEYS = paths(Spec)


def _commands(page: Path) -> list[tuple[str, str]]:
    """Each `raycrt COMMAND` in the code of a page with the words that follow it."""
    text = page.read_text()
    spans = re.findall(
        r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    )
    lines = [" ".join(span.split()) for span in spans]
    for block in blocks(page):
        if block.language not in ("console", "text"):
            continue
        lines += block.code.replace("\\\n", " ").splitlines()
    return [
        (found[1], found[2])
        for line in lines
        for found in re.finditer(r"(?:^|[\s(;&])raycrt ([a-z]+)\b([^#;&]*)", line)
    ]


def test_modules_and_targets_that_pages_name_exist():
    targets = (ROOT / "Makefile").read_text()
    for page in [*PAGES, *OTHERS]:
        for block in blocks(page):
            for module in re.findall(r"python -m ([\w.]+)", block.code):
                assert find_spec(module), f"{page.name}: {module}"
            for target in re.findall(r"^make ([\w-]+)", block.code, re.M):
                assert re.search(rf"^{target}:", targets, re.M), f"{page.name}: make {target}"


def test_every_page_is_in_the_contents_of_the_site():
    listed = re.findall(r"^([\w-]+)$", (ROOT / "docs" / "index.md").read_text(), re.M)
    assert sorted([*listed, "index"]) == [page.stem for page in PAGES]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(ACTIVATIONS)
    yield tmp_path
    for name in ACTIVATIONS.keys() - known.keys():
        del ACTIVATIONS[name]


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p.name in MEASURED else ()) for p in SHORT],
    ids=_name,
)
def test_pages_of_python_run(page, here):
    run(page, here)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", LONG, ids=_name)
def test_pages_with_commands_run(page, here):
    run(page, here)


def test_the_format_states_the_directions_that_both_programs_have():
    page = (ROOT / "docs" / "certificates.md").read_text()
    stated = re.search(r"raycrt takes min\((\d+), features\) columns", page)
    assert stated is not None
    assert {int(stated[1])} == {solver._DIRECTIONS, checker._DIRECTIONS}
