"""The page as text: whole, escaped, and honest about what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest

from raycrt.errors import InvalidInput
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.intervals import wilson
from raycrt.evaluation.page import charts, compare, render
from raycrt.specs import verdict
from raycrt.system.places.storage import place
from tests.evaluation.page.runs import change_rows, named_run, page_of
from tests.verify.runs import edit_manifest


@pytest.fixture(autouse=True)
def without_vega(monkeypatch):
    """Vega and Altair take longer than these tests; test_browser.py has all."""
    monkeypatch.setattr(render, "_script", lambda: "vega")
    monkeypatch.setattr(charts, "curves", lambda *given: {})
    monkeypatch.setattr(charts, "histogram", lambda *given: {})
    monkeypatch.setattr(charts, "comparison", lambda *given: {})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return named_run(tmp_path_factory.mktemp("page"))


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_names_and_keys_are_text(run):
    change_rows(run, {0: {"key": "<img src=x onerror=alert(1)>", "prediction": 3, "label": 1}})
    (run / "search").mkdir()
    (run / "search" / "trials.csv").write_text("number,<i>p</i>,certified\n0,</td><script>,0.5\n")
    page = page_of(run)
    assert page.count("<script>") == page.count("<script>vega</script>") == 1
    for markup in ("<b>bold", "<img src=x", "<i>p", "x" * 50):
        assert markup not in page[: page.index("<details>")]
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "{{ 7 * 7 }}" in page
    assert "x" * 39 + "…" in page


def test_tables_of_a_search_begin_with_what_was_found_in_percent(run):
    (run / "search").mkdir()
    (run / "search" / "trials.csv").write_text(
        "number,train.gamma,model.a.beta,train.beta,state,reason,certified,clean,certified_at/0.25\n"
        "0,0.00123456,1.0,2,complete,,0.5,0.75,0.625\n1,1e-05,2,3,complete,,0.8125,1.0,0.875\n"
    )
    page = page_of(run, number=0)
    part = page[page.index('<section id="search">') : page.index('<section id="guarantee">')]
    titles = re.findall(r"<button[^>]*>([^<]*)</button>", part)
    shares = ["trial", "state", "certified", "clean"]
    assert titles == [*shares, "gamma", "model.a.beta", "train.beta", "certified at 0.25"]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", part)
    assert cells[:8] == ["1", "complete", "81.2 %", "100.0 %", "1e-05", "2", "3", "87.5 %"]
    assert cells[12:14] == ["0.00123", "1"] and 'title="train.gamma"' in part


def test_every_share_has_its_interval_below_it(run, tmp_path):
    (run / "search").mkdir()
    (run / "search" / "finalists.csv").write_text("number,seed,certified,rows\n0,1,0.625,40\n")
    page = page_of(run, number=10)
    found = Certified.of(run / "certificates").summary

    def below(share, rows):
        low, high = wilson(share, rows)
        return f'<span class="faint">{100 * low:.1f} \N{EN DASH} {100 * high:.1f}</span>'

    clean = below(found.clean, 24).removeprefix('<span class="faint">')
    assert f"<b>{100 * found.clean:.2f} %</b><span>95 %: {clean}<span>of 24 test rows" in page
    assert f"62.5 %<br>{below(0.625, 40)}" in page
    parts = re.findall(r'<section id="(accuracy|classes)">(.*?)</section>', page, re.S)
    for _, part in parts:
        tables = "".join(re.findall(r"<tbody>.*?</tbody>", part, re.S))
        shares = re.findall(r"<td[^>]*>([\d.]+) %(.{0,20})", tables)
        assert len(shares) >= 8 and all(end.startswith("<br><span") for _, end in shares)
    one, other = (Certified.of(run / "certificates") for _ in range(2))
    file = compare.write({"one": one, "other": other}, tmp_path)
    figures = re.findall(r'<td data-order="[\d.]+">[\d.]+ %(.{0,4})', file.read_text())
    assert figures == ["<br>"] * 6, "clean and two radii, of two runs"


def test_charts_are_json_and_nothing_is_fetched(run, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(render, "_script", lambda: "vega")
    page = page_of(run)
    specs = re.findall(r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', page)
    assert [name for name, _ in specs] == ["curves", "radii", "ratios"]
    for _, text in specs:
        json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_class_without_test_rows_has_an_empty_line(run):
    change_rows(run, {i: {"label": 0} for i in range(24)})
    page = page_of(run, number=0)
    assert len(re.findall(r"<td data-order=\"0.0\">0</td>\s*(?:<td></td>){4}", page)) == 3


def test_an_unfinished_run_says_so(run):
    assert "not finished" not in page_of(run, number=0)
    change_rows(run, {}, kept=20)
    edit_manifest(run, complete=False)
    assert "20 of 24 rows are certified so far" in page_of(run, number=0)


def test_a_page_without_data_says_why(run):
    page = page_of(run, data_directory=run / "nowhere")
    assert "There is no attacked curve" in page and str(run / "nowhere") in page
    assert "asked for without attacks" in page_of(run, number=0)


def test_a_contradiction_is_said_first(run):
    change_rows(run, {i: {"radius": 9.0, "radius_runner_up": 9.0} for i in range(24)})
    page = page_of(run)
    assert page.index("contradicts its certificate") < page.index("<h2>")


def test_the_note_of_the_checker_is_about_the_files_it_saw(run, made, shell):
    assert "Nothing in this run says that it was verified" in page_of(run, number=0)
    assert f"note: {run}/verified/verdict.json" in shell("verify", run)
    note = verdict.read(run)
    assert note is not None and note.sound and note.checked == note.images == 24
    assert f"{note.sha256}</code>, and they have not changed since" in page_of(run, number=0)
    change_rows(run, {0: {"radius": 9.0, "radius_runner_up": 9.0}})
    assert "have changed since" in page_of(run, number=0)
    shell("verify", run, code=1)
    assert "refused these files: 1 of 24 rows failed" in page_of(run, number=0)


def test_a_model_that_no_spec_describes_is_not_said_to_be_verifiable(run):
    spec = Certified.of(run / "certificates").manifest["spec"]
    edit_manifest(run, spec={**spec, "model": None})
    page = page_of(run)
    assert "Nothing has verified these rows" in page and "<pre>raycrt verify" not in page
    assert "raycrt certify --model MODEL --recipe RECIPE" in page


@pytest.mark.slow
def test_a_run_on_an_object_store_has_its_page_and_its_note_there(object_store, run, shell):
    there = place(f"{object_store}/page/run")
    for file in run.rglob("*"):
        if file.is_file():
            (there / file.relative_to(run).as_posix()).write_bytes(file.read_bytes())
    shell("verify", there)
    assert verdict.fingerprint(there) == verdict.fingerprint(run)
    shell("report", there)
    page = (there / "report" / "report.html").read_text()
    assert "they have not changed since" in page and "data:image/png" in page


def test_a_run_that_takes_no_files_is_verified_without_a_note(run, shell):
    (run / "verified").write_text("")
    said = shell("verify", run)
    assert "each is proved" in said and "note" not in said
    assert verdict.read(run) is None


def test_a_note_does_not_follow_a_link_out_of_the_run(run, tmp_path, shell):
    (tmp_path / "elsewhere").mkdir()
    (run / "verified").symlink_to(tmp_path / "elsewhere")
    assert "each is proved" in shell("verify", run)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_fingerprint_is_of_plain_files_alone(run, tmp_path):
    before = verdict.fingerprint(run)
    assert before is not None
    (run / "train" / "other").write_text("")
    assert verdict.fingerprint(run) == before
    spec = run / "train" / "spec.yaml"
    spec.rename(tmp_path / "spec.yaml")
    assert verdict.fingerprint(run) is None
    spec.symlink_to(tmp_path / "spec.yaml")
    assert verdict.fingerprint(run) is None


def test_runs_are_compared_by_names_that_tell_them_apart(run, tmp_path, shell):
    other = tmp_path / "other" / "run"
    shutil.copytree(run, other)
    edit_manifest(other, complete=False)
    file = Path(shell("report", run, other, "--compare").strip())
    page = file.read_text()
    assert file == run / "report" / "comparison.html"
    assert "other/run is not finished" in page and "is about other rows" not in page
    assert "depth 2, width 8, gelu" in page and "<td>24</td>" in page
    change_rows(other, {i: {"input_sha256": bytes(32)} for i in range(24)})
    shell("report", run, other, "--compare")
    assert "No interval for other/run" in file.read_text()
    spec = Certified.of(other / "certificates").manifest["spec"]
    edit_manifest(other, spec={**spec, "data": {**spec["data"], "split_seed": 5}})
    shell("report", run, other, "--compare")
    assert "<code>data.split_seed</code> is 5, not 0" in file.read_text()
    scaled = {**spec["data"], "scale": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    edit_manifest(other, spec={**spec, "data": scaled})
    assert "data.scale" in shell("report", run, other, "--compare", code=2)
    assert "but got 1" in shell("report", run, "--compare", code=2)
    assert "no effect" in shell("report", run, run, "--compare", "--attacked", 3, code=2)


def test_two_to_eight_runs_are_compared(run, tmp_path):
    found = Certified.of(run / "certificates")
    with pytest.raises(InvalidInput, match="but got 9"):
        compare.write({str(n): found for n in range(9)}, tmp_path)
