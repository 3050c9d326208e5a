"""The certify stage: what it trusts of what it finds, and what it tells of what is not proved."""

import json
import re
from contextlib import nullcontext
from math import nan

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from raycrt import data
from raycrt.certification.table import storage
from raycrt.data.parts import reader
from raycrt.distributed import actors, stages
from raycrt.errors import InvalidInput
from raycrt.evaluation import report
from raycrt.evaluation.tally import summarise
from raycrt.networks import checkpoint, network
from raycrt.specs import validate
from tests.data.laws import part
from tests.data.stores import STORES
from tests.distributed.inprocess import work_here

SPEC = validate(
    {
        "model": {"depth": 2, "width": 8, "activation": "tanh"},
        "data": {"limit": 20},
        "certify": {"at": [0.1], "steps": 0, "batch_size": 8},
    }
)


def _model(seed=0):
    torch.manual_seed(seed)
    return network.build(SPEC.model, data.shape(SPEC.data), len(data.class_names(SPEC.data)))


@pytest.fixture
def made(monkeypatch):
    """The stage with its work done in this process; the starts of the batches that it makes."""
    monkeypatch.setattr(stages, "session", nullcontext)
    monkeypatch.setattr(stages.room, "check", lambda run: None)
    return work_here(monkeypatch)


def _forge(out):
    """Ten times the radii in all rows but the last ones, which are missing."""
    files = sorted((out / storage.ROWS).glob("*.parquet"))
    files.pop().unlink()
    for file in files:
        rows = pa.parquet.read_table(file)
        radius = pc.multiply(rows["radius"], 10.0)
        at = rows.column_names.index("radius")
        storage.write_rows(file, rows.set_column(at, "radius", radius))


def _edit(out, **values):
    file = out / storage.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_batches_of_the_same_run_are_taken_up(tmp_path, made):
    stages.certify(SPEC, _model(), tmp_path)
    table = storage.read(tmp_path)[0]
    (tmp_path / storage.ROWS / "000000008.parquet").unlink()
    stages.certify(SPEC, _model(), tmp_path)
    assert made == [0, 8, 16, 8]
    assert storage.read(tmp_path)[0].equals(table)


@pytest.mark.parametrize("change", [{"margin_curvature": [[0.0] * 10] * 10}, {"schema_version": 3}])
def test_batches_made_with_another_curvature_or_format_are_made_again(tmp_path, made, change):
    stages.certify(SPEC, _model(), tmp_path)
    table, manifest = storage.read(tmp_path)
    _forge(tmp_path)
    _edit(tmp_path, complete=False, **change)
    stages.certify(SPEC, _model(), tmp_path)
    found, after = storage.read(tmp_path)
    assert found.equals(table)
    assert after["margin_curvature"] == manifest["margin_curvature"]
    assert made == [0, 8, 16] * 2


def test_batches_without_a_manifest_are_refused(tmp_path, made):
    stages.certify(SPEC, _model(), tmp_path)
    (tmp_path / storage.MANIFEST).unlink()
    with pytest.raises(InvalidInput, match="rows have a manifest"):
        stages.certify(SPEC, _model(), tmp_path)


def test_no_number_beside_a_model_enters_a_certificate(tmp_path, made):
    model, trained = _model(), tmp_path / "train"
    checkpoint.save_model(trained, model, SPEC)
    files = set(trained.iterdir())
    honest = stages.certify(SPEC, model, tmp_path / "certificates")
    assert set(trained.iterdir()) == files
    forged = {
        "weights_sha256": checkpoint.weights_hash(model),
        "model": SPEC.model.model_dump(mode="json"),
        "margin_curvature": [[0.0] * 10] * 10,
    }
    (trained / "curvature.json").write_text(json.dumps(forged))
    again = stages.certify(SPEC, checkpoint.load_model(trained)[0], tmp_path / "again")
    assert again["margin_curvature"] == honest["margin_curvature"]
    tables = [storage.read(tmp_path / name)[0] for name in ("certificates", "again")]
    assert tables[0].equals(tables[1])


def test_rows_that_are_not_proved_are_told_with_the_reason(tmp_path, made, monkeypatch, capsys):
    stages.certify(SPEC, _model(), tmp_path / "first")
    assert "rows:" not in capsys.readouterr().out
    parts = data.read(SPEC.data)
    parts.test.images[3] = nan
    monkeypatch.setattr(reader, "read", lambda spec: parts)
    stages.certify(SPEC, _model(), tmp_path / "second")
    assert "1 of 20 rows: The image holds NaN or infinite values." in capsys.readouterr().out


@pytest.fixture
def images(tmp_path):
    """The spec of a folder of images with a test split, and a model for it."""
    store = STORES["folder"]
    spec = store.spec(tmp_path / "data", {"train": part(9), "test": part(20, seed=1)})
    spec = data.opened_for_test(spec.override({"certify": SPEC.certify.model_dump()}))[0]
    torch.manual_seed(0)
    model = network.build(spec.model, data.shape(spec.data), len(data.class_names(spec.data)))
    return spec, model


def test_what_cannot_be_read_is_named_when_all_other_shards_are_written(tmp_path, made, images):
    spec, model = images
    out, file = tmp_path / "certificates", tmp_path / "data" / "test" / "bat" / "004.png"
    whole = file.read_bytes()
    file.write_bytes(b"no image")
    with pytest.raises(
        InvalidInput, match=rf"every row .* but {file} must be an image.* all other"
    ):
        stages.certify(spec, model, out)
    # Rows are read by class: the image is the ninth.
    assert storage.read_rows(out, ("index",))["index"].to_pylist() == [*range(8), *range(16, 20)]
    written = report.write(out, tmp_path / "report")
    assert written.remarks[0] == "12 of 20 rows are certified so far."
    assert "12 of 20 rows are certified so far." in written.markdown.read_text()
    file.write_bytes(whole)
    stages.certify(spec, model, out)
    assert made == [0, 8, 16, 8]
    table, manifest = storage.read(out)
    assert manifest["complete"] and table["key"].to_pylist()[8] == "test/bat/004.png"
    assert report.write(out, tmp_path / "report").remarks == storage.remarks(storage.statuses(out))


def test_rows_of_another_curvature_are_deleted_before_others_are_written(tmp_path, made, images):
    """Their shards may be of another size."""
    spec, model = images
    stages.certify(spec, model, tmp_path)
    table = storage.read(tmp_path)[0]
    forged = storage.read_rows(tmp_path)
    storage.write_rows(tmp_path / storage.ROWS / "000000003.parquet", forged)
    _edit(tmp_path, margin_curvature=[[0.0]], complete=False)
    stages.certify(spec, model, tmp_path)
    assert storage.read(tmp_path)[0].equals(table)
    storage.write_rows(tmp_path / storage.ROWS / "000000003.parquet", forged.slice(0, 0))
    _edit(tmp_path, complete=False)
    with pytest.raises(InvalidInput, match="rows are in the files of their shards"):
        stages.certify(spec, model, tmp_path)


def test_a_doubled_row_is_not_reported_on(tmp_path, made):
    stages.certify(SPEC, _model(), tmp_path / "rows")
    rows = storage.read_rows(tmp_path / "rows")
    storage.write_rows(tmp_path / "rows" / storage.ROWS / "000000003.parquet", rows.slice(7, 1))
    with pytest.raises(InvalidInput, match="at most once"):
        report.write(tmp_path / "rows", tmp_path / "report")


def test_the_share_so_far_is_shown_beside_the_progress(tmp_path, made, capsys):
    stages.certify(SPEC, _model(), tmp_path)
    summary = summarise(storage.read(tmp_path)[0], (0.1,))
    said = (
        f"clean {100 * summary.clean:.2f} %, certified {100 * summary.certified[0.1]:.2f} % at 0.1"
    )
    shown = rf"^certify 20/20, \d+:\d\d:\d\d, 0:00:00 left  {re.escape(said)}$"
    assert re.search(shown, capsys.readouterr().out, re.M)


def test_processes_that_end_before_they_certify_are_not_begun_for_ever(tmp_path, made, monkeypatch):
    """Each ends while it loads the model; one that is begun after ten says so."""

    class Killed(BaseException):
        pass

    def ended(*arguments, **options):
        raise Killed

    stages.certify(SPEC, _model(), tmp_path)
    (tmp_path / storage.ROWS / "000000008.parquet").unlink()
    given = (_model(), torch.zeros(10, 10).numpy(), SPEC, data.test_rows(SPEC.data), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(actors.Certifier, "of", ended)
        for _ in range(10):
            with pytest.raises(Killed):
                actors.Certify(*given)
        (refused,) = actors.told(actors.Certify(*given)({"first": [0], "last": [8]}))
    assert isinstance(refused, actors.Refusal)
    assert refused.sentence == "10 processes ended before they could certify a row"
    stages.certify(SPEC, _model(), tmp_path)
    assert made == [0, 8, 16, 8]
    assert all(file.suffix == ".parquet" for file in (tmp_path / storage.ROWS).iterdir())
