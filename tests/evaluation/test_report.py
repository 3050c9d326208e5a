"""The report: what is not proved is counted, with the reason."""

from collections import Counter

import pytest
import torch

from raycrt import Certifier, Status
from raycrt.certification.table import storage
from raycrt.evaluation import report
from tests.models import random_network
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), spec_of(rows=20, at=(0.1,)))


def test_every_status_has_a_sentence():
    sentences = {status.sentence for status in Status}
    assert len(sentences) == len(Status) and all(s.endswith(".") for s in sentences)


def test_rows_that_are_not_proved_are_counted_by_reason(run, tmp_path):
    rows = rows_of(run).to_pylist()
    good = sum(row["status"] == "certified" for row in rows)
    assert good == len(rows)
    assert report.write(run / "certificates", tmp_path / "all proved").remarks == []
    for number, status in ((2, "tied"), (5, "non_finite_input"), (7, "tied")):
        rows[number] |= {"status": status, "radius": 0.0, "radius_runner_up": 0.0}
    rewrite_rows(run, rows)
    written = report.write(run / "certificates", tmp_path / "some not")
    lines = written.markdown.read_text().splitlines()
    assert f"- 2 of 20 rows: {Status.TIED.sentence}" in lines
    assert f"- 1 of 20 rows: {Status.NON_FINITE_INPUT.sentence}" in lines
    assert "rows: " not in (tmp_path / "all proved" / "report.md").read_text()


def test_certificates_count_their_statuses():

    images = torch.randn(6, 5)
    images[4, 1] = torch.inf
    found = Certifier(random_network(2))(images)
    assert found.statuses() == {Status.CERTIFIED: 5, Status.NON_FINITE_INPUT: 1}
    table = storage.to_table(found, 0, found.prediction.numpy(), images.numpy())
    assert storage.remarks(Counter(table["status"].to_pylist())) == [
        f"1 of 6 rows: {Status.NON_FINITE_INPUT.sentence}"
    ]
