"""Which rows are there is told by spans of indices, of any number of rows in the same memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycrt.verify import verify_run
from raycrt.verify.findings import Checked, Finding, joined, not_once, spans_of
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run


@given(st.lists(st.integers(-3, 12), max_size=30))
def test_each_index_that_does_not_occur_once_is_found(indices):
    spans = joined(spans_of(np.array(indices, int)))
    assert [k for first, last in spans for k in range(first, last + 1)] == indices
    for order in (spans, sorted(spans), joined(sorted(spans))):
        found, further = not_once(order, 10)
        assert further == 0
        wrong = {k: indices.count(k) for k in range(10) if indices.count(k) != 1}
        assert {finding.index for finding in found} == set(wrong)
        for finding in found:
            times = wrong[finding.index]
            said = f"occurs {times} times" if times else "is missing"
            assert said in finding.sentence


def test_of_many_findings_the_first_are_told_and_the_others_counted():
    found, further = not_once([(5, 9)], 10**8)
    assert [finding.index for finding in found] == [0, 1, 2, 3, 4, *range(10, 1005)]
    assert further == 10**8 - 5 - 1000
    many = [Finding(index=k // 2, sentence="wrong.") for k in range(6000)]
    checked = Checked.of("a.parquet", 3000, [(0, 2999)], many)
    assert len(checked.findings) == 1000 and checked.further == 2500


@pytest.mark.parametrize("missing", [0, 1])
def test_a_record_of_each_file_is_kept_where_it_is_asked_for(tmp_path, missing):
    run = write_run(tmp_path / "run", spec_of(rows=20))
    rows = rows_of(run).to_pylist()
    rows[3]["radius"] *= 2
    rows[3]["radius_runner_up"] = max(rows[3]["radius"], rows[3]["radius_runner_up"])
    rewrite_rows(run, rows[missing:], in_a_file=8)
    report = verify_run(run, records=tmp_path / "records")
    assert report.failed == 1 + missing
    kept = [json.loads(file.read_text()) for file in sorted((tmp_path / "records").iterdir())]
    assert [each["rows"] for each in kept] == [8, 8, 4 - missing]
    assert kept[0]["spans"] == [[missing, 7 + missing]]
    assert {finding["index"] for finding in kept[0]["findings"]} == {3}
    assert "no more than" in kept[0]["findings"][0]["sentence"]
    assert not kept[1]["findings"]
