"""The whole job, stopped in each of its stages: what it marks as finished, what it does again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from raycrt import report
from raycrt.distributed import stages
from raycrt.interruption import Terminated
from raycrt.spec import Spec, validate
from tests.conftest import TINY
from tuning import finals, pipeline, search, study

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
            return SimpleNamespace(headline="", markdown=Path("a"), plot=Path("b"))

        return run

    def found() -> None:
        (tmp_path / "search" / study.BEST).write_text(SPEC.to_yaml())

    monkeypatch.setattr(pipeline, "session", nullcontext)
    monkeypatch.setattr(pipeline.room, "check", lambda run: None)
    monkeypatch.setattr(search, "run", stage("search", found))
    monkeypatch.setattr(stages, "train", stage("train"))
    monkeypatch.setattr(pipeline, "_certify", stage("certify"))
    monkeypatch.setattr(report, "write", stage("report"))
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

    monkeypatch.setattr(search, "session", nullcontext)
    monkeypatch.setattr(search.room, "check", lambda spec: None)
    monkeypatch.setattr(search, "_run_trials", stop)
    monkeypatch.setattr(finals, "choose", choose)
    with pytest.raises(KeyboardInterrupt):
        search.run(SPEC, tmp_path, console=Console(quiet=True))
    assert not (tmp_path / study.BEST).exists()
