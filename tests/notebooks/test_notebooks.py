"""The notebooks run as they stand, and keep the outputs of a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
# The largest file of outputs that a code host still shows quickly.
LARGEST = 400_000


def _outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of the outputs of each cell."""
    return [
        sorted({kind for o in cell.get("outputs", ()) for kind in o.get("data", [o.output_type])})
        for cell in notebook.cells
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_outputs_are_kept_and_small(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert file.stat().st_size < LARGEST
    assert any("image/png" in kinds for kinds in _outputs(notebook))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "the outputs are those of one run"
    assert not any("error" in kinds for kinds in _outputs(notebook))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["certificates", "your_data"])
def test_a_notebook_runs_and_shows_what_it_shows(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    kept = _outputs(notebook)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert _outputs(notebook) == kept
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
