"""The submit helper: what it passes on, what it refuses, and the exit code that it gives back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import typer

from raycrt.cluster import submit
from raycrt.errors import InvalidInput

if TYPE_CHECKING:
    from tests.cluster.conftest import Head

SUBMIT = (sys.executable, "-m", "raycrt.cluster.submit")


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


class Lossy:
    """A job server whose jobs end as told, one by one; the log of a lost one is lost too."""

    def __init__(self, *ends: str) -> None:
        self.ends, self.names = list(ends), list[str | None]()

    def submit_job(self, **job: object) -> str:
        self.names.append(job["submission_id"])  # type: ignore[arg-type]
        assert job["entrypoint_num_cpus"] == 1
        return f"job {len(self.names)}"

    def get_job_info(self, identity: str) -> object:
        from ray.job_submission import JobDetails, JobStatus, JobType

        end = self.ends[len(self.names) - 1]
        return JobDetails(
            type=JobType.SUBMISSION,
            status=JobStatus.SUCCEEDED if end == "SUCCEEDED" else JobStatus.FAILED,
            entrypoint=identity,
            error_type=None if end == "SUCCEEDED" else end,
            driver_exit_code=3 if end == EXITED else None,
        )

    def get_job_logs(self, identity: str) -> str:
        if self.ends[len(self.names) - 1] == LOST:
            raise RuntimeError("no agent")
        return ""


LOST, EXITED = "JOB_SUPERVISOR_ACTOR_DIED", "JOB_ENTRYPOINT_COMMAND_ERROR"


@pytest.mark.parametrize(
    ("ends", "names", "code"),
    [
        ((LOST, LOST, "SUCCEEDED"), ["a", "a-1", "a-2"], 0),
        ((LOST, EXITED, "SUCCEEDED"), ["a", "a-1"], 3),
        ((LOST, LOST, LOST), ["a", "a-1", "a-2"], 1),
    ],
)
def test_only_a_job_that_is_lost_is_submitted_again(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: tuple[str, ...],
    names: list[str],
    code: int,
) -> None:
    server = Lossy(*ends)
    monkeypatch.setattr(submit, "connect", lambda address: server)
    monkeypatch.setattr(submit.logging, "disable", lambda level: None)
    with pytest.raises(typer.Exit) as exited:
        submit.main(["true"], submission_id="a", entrypoint_num_cpus=1, retries=2)
    assert exited.value.exit_code == code
    assert server.names == names
    assert capsys.readouterr().err.count("submitting it again") == len(names) - 1


def test_what_is_not_waited_for_is_not_submitted_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit.logging, "disable", lambda level: None)
    with pytest.raises(typer.Exit):
        submit.main(["true"], wait=False, retries=1)
    assert "--retries is with --wait" in capsys.readouterr().err


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
        *("python", "-m", "raycrt.cluster.pipeline", "--out", "runs/lost"),
    )
    assert done.returncode == 2, done.stderr
    assert "absolute path" in done.stdout


@pytest.mark.cluster
def test_without_the_token_nothing_is_submitted(head: Head) -> None:
    done = head.run(*(*SUBMIT, "--address", head.address, "--", "true"), RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 2
    assert "refuses the token" in done.stderr
    assert "Traceback" not in done.stderr
