"""The certify stage: curvature is proved once for a model, and what is not proved is told."""

from contextlib import nullcontext
from math import nan

import pytest
import torch

from raycrt import Certifier, certificates, checkpoint, data, network
from raycrt.distributed import stages
from raycrt.spec import validate

SPEC = validate(
    {
        "model": {"depth": 2, "width": 8, "activation": "tanh"},
        "data": {"limit": 20},
        "certify": {"at": [0.1], "steps": 0},
    }
)


def _model(seed=0, spec=SPEC):
    torch.manual_seed(seed)
    return network.build(spec.model, data.image_shape(spec.data), data.CLASSES)


@pytest.fixture
def proved(monkeypatch):
    """The stage with its work done in this process; the models whose curvature was proved."""
    models, prove = [], stages.margin_curvature

    def counted(model):
        models.append(model)
        return prove(model)

    def work(model, spec, split, out, *, curvature, told, training, watch):
        assert torch.equal(curvature, prove(model))
        found = Certifier(model, steps=0, curvature=curvature)(split.images)
        (out / certificates.ROWS).mkdir(parents=True, exist_ok=True)
        table = certificates.to_table(found, 0, split.labels.numpy())
        certificates.write_rows(out / certificates.ROWS / "0.parquet", table)
        facts = {"complete": False, "weights_sha256": checkpoint.weights_hash(model)}
        facts |= {"rows": len(split), "spec": spec.model_dump(mode="json")}
        certificates.write_manifest(out, facts)
        return facts

    monkeypatch.setattr(stages, "margin_curvature", counted)
    monkeypatch.setattr(stages, "session", nullcontext)
    monkeypatch.setattr(stages.room, "check", lambda run: None)
    monkeypatch.setattr(stages.certification, "certify", work)
    return models


def test_curvature_is_proved_once_for_a_model(tmp_path, proved):
    home, out, model = tmp_path / "train", tmp_path / "certificates", _model()
    home.mkdir()
    for _ in range(2):
        stages.certify(SPEC, model, out, home=home)
    assert proved == [model]
    assert (home / checkpoint.CURVATURE).is_file()


def test_curvature_of_other_weights_or_another_activation_is_not_used(tmp_path, proved):
    """`work` above compares what it is given with what the model has."""
    home, model = tmp_path / "train", _model()
    home.mkdir()
    sharper = SPEC.override({"model.activation": "softplus", "model.beta": 3.0})
    other = _model(spec=sharper)
    assert checkpoint.weights_hash(other) == checkpoint.weights_hash(model)
    with torch.no_grad():
        changed = _model()
        changed.layers[0].weight[0, 0] += 1
    for number, (spec, each) in enumerate(((SPEC, model), (SPEC, changed), (sharper, other))):
        stages.certify(spec, each, tmp_path / f"certificates-{number}", home=home)
    assert proved == [model, changed, other]


def test_without_a_directory_nothing_is_kept(tmp_path, proved):
    model = _model()
    for _ in range(2):
        stages.certify(SPEC, model, tmp_path / "certificates")
    assert proved == [model, model]
    assert not list(tmp_path.rglob(checkpoint.CURVATURE))


def test_rows_that_are_not_proved_are_told_with_the_reason(tmp_path, proved, monkeypatch, capsys):
    stages.certify(SPEC, _model(), tmp_path / "certificates")
    assert "rows:" not in capsys.readouterr().out
    parts = data.load(SPEC.data)
    parts.test.images[3] = nan
    monkeypatch.setattr(data, "load", lambda spec: parts)
    stages.certify(SPEC, _model(), tmp_path / "certificates")
    assert "1 of 20 rows: The image holds NaN or infinite values." in capsys.readouterr().out
