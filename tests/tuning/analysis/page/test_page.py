"""The page of a search: what it says, and that a browser shows it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from raycrt.tuning.analysis import study, summary
from raycrt.tuning.analysis.page import write
from tests.browser import contrast

RESULTS = Path(__file__).parents[4] / "docs" / "results"


def _page(name: str, out: Path, **changes: Any) -> Path:
    run = RESULTS / name
    return Path(write.write({**summary.of(run), **changes}, study.load(run)[0], out))


def _specs(file: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" id="spec-([\w-]+)">(.*?)</script>', file.read_text(), re.S
    )
    return {name: json.loads(text) for name, text in found}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _page("search-digits", tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search of which nine trials ran to the end."""
    return _page("search-mnist", tmp_path_factory.mktemp("few"))


def test_every_measured_trial_is_drawn_with_its_interval(page: Path) -> None:
    drawn = _specs(page)["history"]
    values = max((layer["data"]["values"] for layer in _layers(drawn)), key=len)
    trials = {t["number"]: t for t in summary.of(RESULTS / "search-digits")["trials"]}
    assert {value["number"] for value in values} == set(trials) == set(range(60))
    for value in values:
        assert value["low"] < value["certified"] < value["high"] or value["certified"] == 0
        assert value["certified"] == pytest.approx(100 * trials[value["number"]]["certified"])


def _layers(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    data = drawn.get("datasets", {})
    found = []
    for layer in drawn.get("layer", [drawn]):
        for each in _layers(layer) if "layer" in layer else [layer]:
            own = each.get("data", drawn.get("data", {}))
            values = own.get("values", data.get(own.get("name", ""), []))
            found.append({**each, "data": {"values": values}})
    return found


def test_the_page_has_a_part_for_each_question(page: Path) -> None:
    specs = _specs(page)
    named = {"history", "finals", "parallel", "importances", "pareto", "rungs", "cost"}
    assert named <= set(specs)
    assert sum(name.startswith("slice-") for name in specs) == 5
    assert sum(name.startswith("plane-") for name in specs) == 3
    text = page.read_text()
    assert "model.activation: tanh" in text and "too few to tell" in text
    assert "trials that come next cannot be told apart from the best" in text
    assert "overlap" not in text[text.index("<body>") : text.index("<noscript>")]


def test_legends_name_what_is_drawn_alone(page: Path, few: Path) -> None:
    assert _legends(_specs(page)["history"]) == {"complete", "best so far"}
    assert not _legends(_specs(page)["slice-0"]) | _legends(_specs(page)["rungs"])
    pruned = _specs(few)["rungs"]
    assert _legends(pruned) == {"complete", "pruned: at its last rung"}


def _legends(drawn: dict[str, Any]) -> set[str]:
    """The names in the legends of colours of a chart."""
    colours = [layer["encoding"].get("color", {}) for layer in _layers(drawn)]
    shown = [colour for colour in colours if "scale" in colour and colour["legend"]]
    return {name for colour in shown for name in colour["scale"]["domain"]}


def test_each_parameter_has_values_to_read_it_by(page: Path) -> None:
    layers = _layers(_specs(page)["parallel"])
    [words, _] = [layer for layer in layers if layer["mark"]["type"] == "text"]
    told: dict[str, list[str]] = {}
    for value in words["data"]["values"]:
        told.setdefault(value["parameter"], []).append(value["value"])
    spec = study.load(RESULTS / "search-digits")[0]
    assert [*told] == [path.rpartition(".")[2] for path in spec.search.space]
    gamma = spec.search.space["train.gamma"]
    assert told["gamma"][0] == f"{gamma.low:.3g}" and told["gamma"][-1] == f"{gamma.high:.3g}"
    assert told["activation"] == list(spec.search.space["model.activation"].choices or ())


def test_where_there_are_too_few_trials_no_importance_is_shown(few: Path) -> None:
    text, found = few.read_text(), summary.of(RESULTS / "search-mnist")
    assert found["importances"] and "importances" not in _specs(few)
    for path in found["importances"]:
        assert f"<code>{path}</code>: too few trials to tell." in text


def test_pruned_trials_are_shown_as_such(few: Path) -> None:
    drawn = _specs(few)["history"]
    values = max((layer["data"]["values"] for layer in _layers(drawn)), key=len)
    kinds = [value["trials"] for value in values]
    assert kinds.count("complete") == 9 and kinds.count("pruned: at its last rung") == 17


def test_a_search_without_complete_trials_and_with_strange_reasons_has_a_page(
    tmp_path: Path,
) -> None:
    found = summary.of(RESULTS / "search-mnist")
    trials = [
        {**trial, "state": "failed", "reason": "<script>alert(1)</script>", "rows": 0}
        for trial in found["trials"]
    ]
    empty: dict[str, Any] = {"importances": {}, "finalists": [], "contour": None, "pareto": []}
    file = _page("search-mnist", tmp_path, trials=trials, best=[], history=[], **empty)
    text = file.read_text()
    assert "No trial has run to its end." in text
    assert "<script>alert" not in text and html.escape("<script>alert(1)</script>") in text


@pytest.mark.slow
def test_a_browser_shows_it_on_a_desk_and_on_a_phone(opened: Any, page: Path) -> None:
    for width in (1200, 390):
        tab = opened(page, viewport={"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator(".chart svg path").count() > 100
    tab.locator("table.sortable th button", has_text="certified").click()
    shown = tab.locator("table.sortable tbody tr td:nth-child(3)").evaluate_all(
        "cells => cells.map(cell => Number(cell.dataset.order))"
    )
    assert shown == sorted(shown)


@pytest.mark.slow
def test_no_mark_lies_on_the_frame(opened: Any, page: Path) -> None:
    tab = opened(page)
    for name in ("history", "slice-0", "plane-0", "rungs"):
        chart = tab.locator(f"[data-spec=spec-{name}]")
        frame = chart.locator("path.background").first.bounding_box()
        for mark in chart.locator(".mark-symbol.role-mark path").all()[:80]:
            box = mark.bounding_box()
            assert frame["x"] < box["x"] < frame["x"] + frame["width"] - box["width"]
            assert frame["y"] < box["y"] < frame["y"] + frame["height"] - box["height"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_steps_of_certified_can_be_told_from_the_paper_and_in_order(
    opened: Any, page: Path, scheme: str
) -> None:
    tab = opened(page, color_scheme=scheme)
    lines = tab.locator("[data-spec=spec-parallel] .mark-line path")
    drawn = set(lines.evaluate_all("all => all.map(e => getComputedStyle(e).stroke)"))
    steps = tab.evaluate(
        "[0, 1, 2, 3, 4].map(n => { const e = document.createElement('p');"
        " e.style.color = `var(--level-${n})`; document.body.append(e);"
        " return getComputedStyle(e).color; })"
    )
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    contrasts = [contrast(step, paper) for step in steps]
    assert contrasts == sorted(contrasts) and contrasts[0] >= 3
    assert drawn <= set(steps) and len(drawn) >= 4
