"""The built site: no warning, no link that leads nowhere, an entry for each name."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typer.main import get_command

import raycrt
from raycrt.cli.main import assembled
from raycrt.specs import Spec, paths
from tests.docs.blocks import PAGES, ROOT


class _Page(HTMLParser):
    """The anchors of a page, and what it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.text = file.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"])
        self.links += [given[key] for key in ("href", "src") if given.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site by their files."""
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "docs", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return {file.resolve(): _Page(file) for file in out.rglob("*.html")}


def test_every_page_is_built(site):
    assert {page.stem for page in PAGES} <= {file.stem for file in site}


def test_every_internal_link_leads_somewhere(site):
    lost = []
    for file, page in site.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            there = (file.parent / unquote(target.path)).resolve() if target.path else file
            if not there.exists():
                lost.append(f"{file.name}: {link}")
            elif there in site and target.fragment:
                known = unquote(target.fragment) in site[there].ids
                lost += [] if known else [f"{file.name}: {link}"]
    assert not lost


def _entries(site, name: str) -> set[str]:
    return next(page for file, page in site.items() if file.name == name).ids


def test_each_command_and_option_has_an_entry(site):
    found = _entries(site, "commands.html")
    for name, command in get_command(assembled()).commands.items():
        assert f"raycrt-{name}" in found
        for parameter in command.params:
            option = parameter.opts[0].lstrip("-").replace("_", "-")
            assert any(
                re.fullmatch(rf"cmdoption-raycrt-{name}-(arg-)?{option}", i) for i in found
            ), option


def test_each_key_has_an_entry(site):
    found = _entries(site, "spec.html")
    assert {f"confval-{path}" for path in paths(Spec)} <= found


def test_each_public_name_has_an_entry(site):
    assert {f"raycrt.{name}" for name in raycrt.__all__} <= _entries(site, "api.html")


def test_no_part_of_the_reference_is_left_out(site):
    assert not [file.name for file, page in site.items() if "generated:" in page.text]


@pytest.mark.slow
def test_figures_are_drawn_by_their_program(tmp_path):
    figures = ROOT / "docs" / "figures"
    subprocess.run([sys.executable, figures / "draw.py", tmp_path], check=True, timeout=250)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in figures.glob("*.svg")}
    shown = "".join(page.read_text() for page in PAGES)
    assert all(f"](figures/{name})" in shown for name in drawn)
