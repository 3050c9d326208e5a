"""The journal of a study on an object store."""

import optuna
import pytest
from optuna.storages import JournalStorage

from raycrt.system.places import outputs, storage
from raycrt.tuning.trials import segments
from raycrt.tuning.trials.segments import Segments

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(object_store, tmp_path):
    return storage.given(f"{object_store}/{tmp_path.name}/search") / "study.journal"


def test_what_is_appended_is_read_by_every_other_process(folder, monkeypatch):
    monkeypatch.setattr(segments, "_FULL", 60)
    writer, reader = Segments(folder), Segments(folder)
    logs = [{"number": number} for number in range(12)]
    assert list(reader.read_logs(0)) == []
    for number in range(0, 12, 2):
        with outputs.held(folder.parent):
            writer.append_logs(logs[number : number + 2])
            assert list(writer.read_logs(0)) == logs[: number + 2]
        assert list(reader.read_logs(number)) == logs[number : number + 2]
    assert len(list(folder.iterdir())) > 1
    assert list(Segments(folder).read_logs(3)) == logs[3:]


def test_a_holder_sees_what_the_one_before_it_wrote(folder):
    first, second = Segments(folder), Segments(folder)
    for number, (writer, other) in enumerate([(first, second), (second, first)] * 2):
        assert len(list(other.read_logs(0))) == number
        with outputs.held(folder.parent):
            writer.append_logs([{"number": number}])
    assert list(first.read_logs(0)) == [{"number": number} for number in range(4)]


def test_a_study_is_kept(folder):
    kept = optuna.create_study(study_name="a", storage=JournalStorage(Segments(folder)))
    with outputs.held(folder.parent):
        kept.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    again = optuna.load_study(study_name="a", storage=JournalStorage(Segments(folder)))
    assert [t.params for t in again.trials] == [t.params for t in kept.trials]
