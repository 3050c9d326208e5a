"""Workers, which run elsewhere, are told where the driver found the images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycrt.distributed.training import train
from raycrt.specs import Spec
from raycrt.tuning.search import driver, finals
from raycrt.tuning.trials import resources, store
from tests.tuning.analysis.test_study import record
from tests.tuning.driver import LANDSCAPE


class Told(Exception):
    """What a worker would have got."""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYCRT_DATA", "images")
    return LANDSCAPE.override({"data.name": "mnist"})


def test_training_workers(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(work: Any, *, train_loop_config: dict[str, Any], **_: Any) -> None:
        raise Told(train_loop_config)

    monkeypatch.setattr(train.lines, "start", lambda: None)
    monkeypatch.setattr(train, "TorchTrainer", trainer)
    with pytest.raises(Told) as told:
        train.fit(spec, tmp_path)
    [config] = told.value.args
    assert config["data"]["directory"] == str(tmp_path / "images")
    # What is stored with the weights can be read where the images lie elsewhere.
    assert config["spec"]["data"]["directory"] is None


def test_trials(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_parameters(trial: Any, *, tree: dict[str, Any], **_: Any) -> None:
        raise Told(tree)

    monkeypatch.setattr(driver.tune, "with_parameters", with_parameters)
    monkeypatch.setattr(resources, "check", lambda spec: None)
    study = store.start_study(spec, tmp_path, [])
    with pytest.raises(Told) as told:
        driver._run_trials(spec, tmp_path, study, [], 3, SimpleNamespace())  # type: ignore[arg-type]
    assert told.value.args[0]["data"]["directory"] == str(tmp_path / "images")


def test_finals(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remote(tree: dict[str, Any], *_: Any) -> None:
        raise Told(tree)

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))
    monkeypatch.setattr(finals.ray, "remote", lambda work: task)
    monkeypatch.setattr(resources, "trials", lambda spec: 1)
    spec.save(tmp_path)
    with pytest.raises(Told) as told:
        finals._train_all(spec, tmp_path, [record(0, 0.5, 0.9)], lambda done, note: None)
    assert told.value.args[0]["data"]["directory"] == str(tmp_path / "images")
