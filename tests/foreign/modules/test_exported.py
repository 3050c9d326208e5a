"""Archives of `torch.export.save`: `.pt2` files."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from raycrt import as_network, load
from raycrt.errors import InvalidInput
from raycrt.foreign.description import spec_of

OPEN = ({0: torch.export.Dim("batch")},)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(32, 3)
    return nn.Sequential(*layers)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    layers = nn.Conv2d(1, 2, 3, padding=1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
    return nn.Sequential(*layers).eval()


def test_batch_normalisation_has_its_arguments_in_another_order_in_a_program():
    model, x = normalised(), torch.rand(2, 1, 4, 4)
    program = torch.export.export(model, (x,), dynamic_shapes=OPEN)
    network = as_network(program.module(), (1, 4, 4))
    torch.testing.assert_close(network(x), model(x))


class Reshaped(nn.Module):
    """A program of one input has its batch size as a number in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutional()

    def forward(self, x):
        hidden = torch.tanh(self.body[0](x))
        return self.body[3](hidden.reshape(x.shape[0], -1))


def saved(file: Path, model: nn.Module, batch: int | None) -> Path:
    example = torch.rand(batch or 2, 1, 4, 4)
    sizes = OPEN if batch is None else None
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=sizes), file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutional, Reshaped])
@pytest.mark.parametrize("batch", [1, None], ids=["one", "open"])
def test_a_program_is_the_network_of_its_model(make, batch, tmp_path):
    model = make()
    network = load(saved(tmp_path / "m.pt2", model, batch), None, (1, 4, 4), run_code=True)
    x = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(network(x), model(x))
    assert spec_of(network, (1, 4, 4)) is not None


@pytest.mark.slow
def test_a_program_of_several_inputs_is_refused(tmp_path):
    file = saved(tmp_path / "m.pt2", convolutional(), 2)
    with pytest.raises(InvalidInput, match=r"one input at a time or any number.* takes 2"):
        load(file, None, (1, 4, 4), run_code=True)


class Spy:
    """Runs code when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.slow
def test_an_archive_is_read_only_where_code_may_run(tmp_path):
    mark = tmp_path / "ran"
    whole = saved(tmp_path / "whole.pt2", convolutional(), 1)
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(tmp_path / "m.pt2", "w") as written:
        for name in read.namelist():
            content = read.read(name)
            if "sample_inputs" in name:
                torch.save(Spy(mark), buffer := io.BytesIO())
                content = buffer.getvalue()
            written.writestr(name, content)
    with pytest.raises(InvalidInput, match=r"only with --run-code .*run_code=True"):
        load(tmp_path / "m.pt2", None, (1, 4, 4))
    assert not mark.exists()
    with contextlib.suppress(InvalidInput):
        load(tmp_path / "m.pt2", None, (1, 4, 4), run_code=True)
    assert mark.exists(), "torch reads archives safely now: the option is no longer needed"


def text(file: Path) -> None:
    file.write_text("text")


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/archive_format", "pt2")


@pytest.mark.parametrize("write", [text, zipped])
def test_another_file_is_refused_in_a_sentence(write, tmp_path, caplog):
    file = tmp_path / "m.pt2"
    write(file)
    with pytest.raises(InvalidInput, match=re.escape(f"{file} must be an archive")):
        load(file, None, (1, 4, 4), run_code=True)
    assert not caplog.records


def test_other_files_do_not_take_run_code(tmp_path):
    (tmp_path / "m.onnx").touch()
    with pytest.raises(InvalidInput, match="run_code must be left out"):
        load(tmp_path / "m.onnx", run_code=True)
