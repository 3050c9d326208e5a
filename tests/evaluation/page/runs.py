"""Small certified runs whose pages the tests read."""

from __future__ import annotations

from pathlib import Path

from raycrt import data
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page import write
from raycrt.evaluation.page.facts import Facts, facts
from tests.data.laws import part
from tests.data.stores import STORES
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run

NAMES = ("<b>bold</b>", "</script><script>alert(1)</script>", "{{ 7 * 7 }}", "x" * 300)


def named_run(place: Path, rows: int = 120) -> Path:
    """A run of four classes with hostile names, whose data is in `rows` beside it."""
    (place / "rows").mkdir(parents=True)
    stored = STORES["npy"].spec(place / "rows", {"train": part(rows, classes=NAMES)})
    spec = spec_of(width=8, name="gelu", at=(0.01, 0.03)).override(
        {"data": stored.data.model_dump()}
    )
    return write_run(place / "run", data.described(spec))


def facts_of(run: Path, **options: object) -> Facts:
    return facts(run, Certified.of(run / "certificates"), **options)  # type: ignore[arg-type]


def page_of(run: Path, **options: object) -> str:
    return write.write(facts_of(run, **options), run / "report").read_text("utf-8")


def change_rows(run: Path, changes: dict[int, dict[str, object]], kept: int | None = None) -> None:
    """Change values of rows by their index, and keep the first rows alone, in files of 7."""
    rows = rows_of(run).to_pylist()
    for index, values in changes.items():
        rows[index] |= values
    rewrite_rows(run, rows[:kept], 7)
