"""Searches side by side, on the kept search and on copies of it."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from raycrt.errors import InvalidInput
from raycrt.evaluation.intervals import SAME, WORSE
from raycrt.specs import Spec
from raycrt.tuning.analysis import comparison, study, summary, tables
from tests.conftest import Shell

KEPT = Path(__file__).parents[3] / "docs" / "results" / "search-mnist"


def _copy(home: Path, certified: float) -> Path:
    """A copy of the kept search whose finals certify this share."""
    shutil.copytree(KEPT, home)
    file = home / "search" / study.FINALISTS
    rows = list(csv.DictReader(file.read_text().splitlines()))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({**row, "certified": certified} for row in rows)
    file.write_text(text.getvalue())
    return home


def test_searches_are_compared_with_the_first(tmp_path: Path) -> None:
    found = comparison.of([KEPT, _copy(tmp_path / "same", 0.81), _copy(tmp_path / "less", 0.5)])
    verdicts = [entry["verdict"] for entry in found["searches"]]
    assert verdicts == [comparison.FIRST, SAME, WORSE]
    console = Console(file=io.StringIO(), width=80)
    comparison.show(found, console)
    assert "worse" in console.file.getvalue() and str(KEPT)[:20] in console.file.getvalue()


def test_several_searches_have_one_page_where_out_says_or_beside_the_first(
    tmp_path: Path, shell: Shell
) -> None:
    one, two = _copy(tmp_path / "a" / "run", 0.81), _copy(tmp_path / "b" / "run", 0.5)
    file = Path(shell("study", one, two).splitlines()[-1])
    assert file == one / "study" / "comparison.html"
    page = file.read_text()
    assert "b/run" in page and "worse" in page and "train.learning_rate" in page
    shell("study", one, two, "--json", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert "--export is for one RUN" in shell("study", one, two, "--export", "x", code=2)


def test_searches_of_other_radii_or_data_are_not_compared(tmp_path: Path) -> None:
    for number, change in enumerate(({"search.radius": 1.0}, {"data.limit": 100})):
        other = _copy(tmp_path / str(number), 0.8)
        (other / "search" / "spec.yaml").unlink()
        Spec.load(KEPT / "search").override(change).save(other / "search")
        with pytest.raises(InvalidInput, match="one data set, split and"):
            comparison.of([KEPT, other])


def test_tables_fit_80_columns_with_each_name_whole() -> None:
    spec = study.load(KEPT)[0]
    console = Console(file=io.StringIO(), width=80)
    tables.show(summary.of(KEPT), spec, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    heads = [line for line in lines if "trial ┃" in line]
    for path in spec.search.space:
        assert any(f" {path.rpartition('.')[2]} " in head for head in heads)


def test_trials_are_told_apart_by_the_interval_of_their_difference() -> None:
    first, other = ({"certified": share, "rows": 359} for share in (0.696, 0.621))
    assert study.wilson(0.621, 359)[1] > study.wilson(0.696, 359)[0]
    assert summary.against(other, first)["verdict"] == WORSE
    assert summary.against(first, first)["verdict"] == SAME
    found = summary.of(KEPT)
    for entries in (found["best"], found["pareto"]):
        assert entries[0]["verdict"] == SAME
        for entry in entries:
            assert entry["difference"][0] < entry["certified"] - entries[0]["certified"]
            assert entry["verdict"] == (WORSE if entry["difference"][1] < 0 else SAME)
    console = Console(file=io.StringIO(), width=80)
    tables.show(found, Spec.load(KEPT / "search"), console)
    same = sum(entry["verdict"] == SAME for entry in found["best"][1:])
    said = " ".join(console.file.getvalue().split())
    assert f"{same} of the other {len(found['best']) - 1} trials cannot be told apart" in said
