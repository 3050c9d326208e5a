"""The whole job, stopped in each of its stages: what it marks as finished, what it does again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from raycrt.distributed import stages
from raycrt.evaluation import report
from raycrt.specs import Spec, validate
from raycrt.system.interruption import Terminated
from raycrt.tuning import pipeline
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver, finals
from tests.conftest import TINY

SPEC = validate(yaml.safe_load(TINY))
STAGES = ["search", "train", "certify", "report"]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Terminated])
@pytest.mark.parametrize("broken", STAGES)
def test_the_same_command_goes_on_with_the_stage_that_was_stopped(
    broken: str,
    signal: type[KeyboardInterrupt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    stops = {broken}

    def stage(name: str, work: Callable[[], None] = lambda: None) -> Callable[..., object]:
        def run(*arguments: object, **options: object) -> object:
            begun.append(name)
            if name in stops:
                raise signal
            work()
            return SimpleNamespace(headline="", markdown=Path("a"), plot=Path("b"), found=None)

        return run

    def found() -> None:
        (tmp_path / "search" / study.BEST).write_text(SPEC.to_yaml())

    monkeypatch.setattr(pipeline, "session", nullcontext)
    monkeypatch.setattr(pipeline.room, "check", lambda run: None)
    monkeypatch.setattr(driver, "run", stage("search", found))
    monkeypatch.setattr(stages, "train", stage("train"))
    monkeypatch.setattr(pipeline, "_certify", stage("certify"))
    monkeypatch.setattr(report, "write", stage("report"))
    monkeypatch.setattr(pipeline, "facts", lambda run, found: None)
    monkeypatch.setattr(pipeline.write, "write", lambda facts, out: out / "c")
    quiet = Console(quiet=True)
    position = STAGES.index(broken)
    with pytest.raises(signal):
        pipeline.run(SPEC, tmp_path, console=quiet)
    assert begun == STAGES[: position + 1]
    stops.clear()
    begun.clear()
    pipeline.run(SPEC, tmp_path, console=quiet)
    assert begun == STAGES[position:]


def test_a_search_that_is_stopped_begins_no_finals_and_names_no_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    def choose(spec: Spec, *given: object) -> None:
        pytest.fail("the finals began")

    monkeypatch.setattr(driver, "session", nullcontext)
    monkeypatch.setattr(driver.resources, "check", lambda spec: None)
    monkeypatch.setattr(driver, "_run_trials", stop)
    monkeypatch.setattr(finals, "choose", choose)
    with pytest.raises(KeyboardInterrupt):
        driver.run(SPEC, tmp_path, console=Console(quiet=True))
    assert not (tmp_path / study.BEST).exists()
