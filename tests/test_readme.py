"""The README keeps its word: its example runs, its commands exist, its headline is a demo's."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_python_example_runs():
    (example,) = _blocks("python")
    exec(compile(example, "README.md", "exec"), {})


def test_every_make_target_exists():
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(_blocks("console")), re.M):
        assert re.search(rf"^{target}\b", listed, re.M)


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^raycrt ([a-z]+)", "\n".join(_blocks("console")), re.M)))
)
def test_every_command_teaches(shell, command):
    assert "Usage" in shell(command, "--help")


@pytest.mark.cluster
def test_the_commands_run_on_a_finished_run(shell, finished_run):
    """`verify`, `report` and `study` as the README writes them, on a run that the demo made."""
    for command in (
        ["verify", finished_run],
        ["report", finished_run],
        ["study", finished_run],
    ):
        shell(*command)


@pytest.mark.cluster
def test_the_headline_has_the_form_that_the_demo_prints(finished_run):
    pattern = r"clean [\d.]+ %; certified \(all classes\) .* images/s.*; \d+ test images"
    assert re.search(pattern, README)
    assert re.search(pattern, (finished_run / "demo.log").read_text())


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
