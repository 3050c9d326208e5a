"""Submit a command to a Ray cluster as a job, show its log, and exit as the job did.

    python -m raycrt.cluster.submit --address http://127.0.0.1:8265 -- raycrt demo --out /shared/a

The job server is polled for the status of the job. The log is fetched in the same way and decides
nothing: a log stream may end, without an error, while its job is still running.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycrt.errors import InvalidInput, require
from raycrt.system import interruption, pipes

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

# Paths that no job needs, besides those in .gitignore and those that Ray leaves out by itself.
EXCLUDES = ["/runs/", "/data/", "/build/", "/dist/", "/docs/", "/notebooks/", "*.parquet"]
_POLL_SECONDS = 1.0
_ANSWER_SECONDS, _PATIENCE_SECONDS = 10.0, 120.0
# How often the log of a job that has ended is asked for.
_REQUESTS_FOR_A_LOG = 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    command: Annotated[
        list[str],
        typer.Argument(help="The command and its arguments, after --, passed on unchanged."),
    ],
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard, for example through an ssh tunnel.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="The directory to send; the job runs in a copy of it.")
    ] = Path("."),
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable for the job and its workers: NAME (its value here) or NAME=VALUE."
        ),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="A name for the job; generated if not given.")
    ] = None,
    wait: Annotated[
        bool, typer.Option(help="Show the log and wait for the job to end, or return at once.")
    ] = True,
    entrypoint_num_cpus: Annotated[
        float,
        typer.Option(
            min=0, help="CPUs for the command itself, on any node; with 0 it runs on the head."
        ),
    ] = 0,
    retries: Annotated[
        int,
        typer.Option(
            min=0, help="How often to submit again a job that is lost with the node it runs on."
        ),
    ] = 0,
) -> None:
    """Run a command on a Ray cluster; the exit code is the job's own.

    The token is looked up as by Ray: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or
    ~/.ray/auth_token. Set RAY_AUTH_MODE=disabled for a cluster without one. Ctrl-C stops showing
    the log, not the job.
    """
    # Ray reports every file that it leaves out of the copy.
    logging.disable(logging.WARNING)
    with _refusals():
        require(wait or not retries, "--retries is with --wait", retries=retries)
        variables = environment(env or [])
        require(working_dir.is_dir(), "working_dir is a directory", working_dir=str(working_dir))
        client = connect(address)
    for again in range(retries + 1):
        with _refusals():
            identity = client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=submission_id and submission_id + (f"-{again}" if again else ""),
                runtime_env={
                    "working_dir": str(working_dir.resolve()),
                    "excludes": EXCLUDES,
                    "env_vars": variables,
                },
                entrypoint_num_cpus=entrypoint_num_cpus,
            )
        _say(f"submitted {identity} to {address}")
        if not wait:
            _say(_how_to_go_on(identity, address))
            return
        info = _followed(client, identity, address)
        _say(f"{identity} {info.status}: {(info.message or '').partition(chr(10))[0]}")
        if not is_lost(info):
            break
        if again < retries:
            _say(
                f"lost with the node that it ran on; submitting it again ({again + 1} of {retries})"
            )
    raise typer.Exit(exit_code(info))


@contextmanager
def _refusals() -> Iterator[None]:
    """Exit with code 2 where nothing is submitted, and say why."""
    try:
        yield
    except (InvalidInput, ConnectionError, RuntimeError) as error:
        _say(f"not submitted: {str(error).strip().splitlines()[-1]}")
        raise typer.Exit(2) from None


def _followed(client: JobSubmissionClient, identity: str, address: str) -> JobDetails:
    """The final details of a job, whose log is shown; exits where that cannot be waited for."""
    left = f"stopped watching; the job goes on.\n{_how_to_go_on(identity, address)}"
    try:
        with interruption.raised(left) as received:
            return watch(client, identity)
    except KeyboardInterrupt as error:
        _say(left)
        raise typer.Exit(128 + interruption.signal_of(error, received)) from None
    except ConnectionError as error:
        _say(f"lost sight of the job, which may go on: {error}\n{_how_to_go_on(identity, address)}")
        raise typer.Exit(1) from None


def connect(address: str) -> JobSubmissionClient:
    """A client for the job server at `address`, with the token unless RAY_AUTH_MODE says otherwise.

    Ray lets RAY_ADDRESS, which also names the cluster that `ray.init` joins, override the address
    that a client is given; here the given address takes precedence.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Waits no longer than `_ANSWER_SECONDS` for an answer: a log comes from the driver's node,
        which says nothing once it has lost its power or network."""

        def _do_request(self, method: str, *words: Any, **options: Any) -> Any:
            if method == "GET":
                options["timeout"] = _ANSWER_SECONDS
            return super()._do_request(method, *words, **options)

    try:
        return Client(address)
    except AuthenticationError as error:
        raise InvalidInput(f"{address} refuses the token: {str(error).splitlines()[0]}") from None


def environment(entries: list[str]) -> dict[str, str]:
    """The variables for a job; `NAME` alone takes the value that it has here."""
    variables = {}
    for entry in entries:
        name, given, value = entry.partition("=")
        require(bool(name), "an --env has the form NAME or NAME=VALUE", got=entry)
        if not given:
            require(name in os.environ, "an --env without a value is set here", name=name)
            value = os.environ[name]
        variables[name] = value
    return variables


def watch(client: JobSubmissionClient, identity: str) -> JobDetails:
    """Print the job's log as it grows until the job has ended; return its final details.

    An unreachable server is polled for two more minutes; then `ConnectionError` is raised. A log
    that cannot be fetched, as it is on a node that died, keeps nobody from a job's end.
    """
    import requests

    shown = refused = 0
    seen = time.monotonic()
    while True:
        info = None
        try:
            # The status first: a job that it reports as ended has written all of its log by then.
            info = client.get_job_info(identity)
            log = client.get_job_logs(identity)
        except (requests.RequestException, RuntimeError) as error:
            if info is None:
                if time.monotonic() - seen > _PATIENCE_SECONDS:
                    raise ConnectionError(str(error)) from None
            else:
                seen = time.monotonic()
                refused += info.status.is_terminal()
                if is_lost(info) or refused == _REQUESTS_FOR_A_LOG:
                    return info
        else:
            seen = time.monotonic()
            sys.stdout.write(log[shown:])
            sys.stdout.flush()
            shown = len(log)
            if info.status.is_terminal():
                return info
        time.sleep(_POLL_SECONDS)


def is_lost(info: JobDetails) -> bool:
    """Whether a job failed because what watches over its command is gone, as after the death of
    their node, and not by the command's own exit code."""
    return info.status == "FAILED" and info.error_type == "JOB_SUPERVISOR_ACTOR_DIED"


def exit_code(info: JobDetails) -> int:
    """0 for a job that succeeded; else its own code, 128 + n if signal n ended it, 1 if unknown."""
    if info.status == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if not code:
        return 1
    return code if code > 0 else 128 - code


def _how_to_go_on(identity: str, address: str) -> str:
    server = f"--address {address}"
    return (
        "  put RAY_AUTH_MODE=token before each of:\n"
        f"  ray job logs --follow {server} {identity}\n"
        f"  ray job status {server} {identity}\n"
        f"  ray job stop {server} {identity}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    pipes.outlive_readers()
    app()
