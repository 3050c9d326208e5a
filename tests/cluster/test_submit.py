"""The submit helper: what it passes on, what it refuses, and the exit code that it gives back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cluster import submit
from raycrt.errors import InvalidInput

if TYPE_CHECKING:
    from tests.cluster.conftest import Head

SUBMIT = (sys.executable, "-m", "cluster.submit")


class Details:
    """The two fields of a job's details that decide an exit code."""

    def __init__(self, status: str, code: int | None) -> None:
        self.status, self.driver_exit_code = status, code


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", 3, 3),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("FAILED", -9, 137),
        ("STOPPED", None, 1),
        ("STOPPED", -15, 143),
    ],
)
def test_exit_code_is_that_of_the_job(status: str, code: int | None, expected: int) -> None:
    assert submit.exit_code(Details(status, code)) == expected  # type: ignore[arg-type]


def test_environment_takes_values_from_here_or_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCRT_DATA", "/data here")
    found = submit.environment(["RAYCRT_DATA", "A=b=c", "EMPTY="])
    assert found == {"RAYCRT_DATA": "/data here", "A": "b=c", "EMPTY": ""}


@pytest.mark.parametrize("entry", ["NEVER_SET_ANYWHERE", "=x", ""])
def test_environment_refuses_what_has_no_name_or_no_value(entry: str) -> None:
    with pytest.raises(InvalidInput, match="--env"):
        submit.environment([entry])


class Server:
    """A job server that fails now and then, and whose log grows while the job runs."""

    def __init__(self) -> None:
        self.answers = iter(["RUNNING", "RUNNING", RuntimeError("busy"), "RUNNING", "FAILED"])
        self.log = ""

    def get_job_info(self, identity: str) -> object:
        answer = next(self.answers)
        if isinstance(answer, RuntimeError):
            raise answer
        from ray.job_submission import JobDetails, JobStatus, JobType

        self.log += f"line {len(self.log.splitlines())}\n"
        return JobDetails(type=JobType.SUBMISSION, status=JobStatus(answer), entrypoint=identity)

    def get_job_logs(self, identity: str) -> str:
        return self.log


def test_watch_goes_on_until_the_status_is_final_and_shows_each_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0)
    info = submit.watch(Server(), "job")  # type: ignore[arg-type]
    assert info.status == "FAILED"
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\nline 3\n"


def test_watch_gives_up_on_a_server_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0)
    monkeypatch.setattr(submit, "_PATIENCE_SECONDS", -1)
    server = Server()
    server.answers = iter([RuntimeError("gone")])
    with pytest.raises(ConnectionError, match="gone"):
        submit.watch(server, "job")  # type: ignore[arg-type]


@pytest.mark.cluster
def test_a_job_gets_its_words_and_variables_and_gives_back_its_exit_code(head: Head) -> None:
    code = "import os, sys; print('got', os.environ['RAYCRT_DATA'], sys.argv); sys.exit(3)"
    done = head.run(
        *(*SUBMIT, "--address", head.address, "--env", "RAYCRT_DATA", "--"),
        *("python", "-c", code, "two words", "$HOME"),
        RAYCRT_DATA="/a b",
        RAY_AUTH_MODE=None,
        RAY_ADDRESS="elsewhere:1",
    )
    assert done.returncode == 3, done.stderr
    assert "got /a b ['-c', 'two words', '$HOME']\n" in done.stdout
    assert "FAILED" in done.stderr


@pytest.mark.cluster
def test_the_pipeline_refuses_to_write_into_the_copy_that_is_deleted(head: Head) -> None:
    done = head.run(
        *(*SUBMIT, "--address", head.address, "--"),
        *("python", "-m", "cluster.pipeline", "--out", "runs/lost"),
    )
    assert done.returncode == 2, done.stderr
    assert "absolute path" in done.stdout


@pytest.mark.cluster
def test_without_the_token_nothing_is_submitted(head: Head) -> None:
    done = head.run(*(*SUBMIT, "--address", head.address, "--", "true"), RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 2
    assert "refuses the token" in done.stderr
    assert "Traceback" not in done.stderr
