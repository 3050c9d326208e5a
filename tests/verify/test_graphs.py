"""Networks of others with skip connections of every kind: certified, and proved a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import raycrt
from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.rounding import RoundingErrors
from raycrt.errors import InvalidInput
from raycrt.foreign import description, files
from raycrt.networks import checkpoint
from raycrt.networks.network import Network
from raycrt.verify import verify_run
from raycrt.verify.computed import Affine
from raycrt.verify.curvature import curvature_upper
from raycrt.verify.model import Model
from raycrt.verify.radius import FLOAT32_UNIT, Errors
from raycrt.verify.side_by_side import direct, identity, stacked, summed
from tests.bounds.laws import most_negative
from tests.foreign.modules.test_blocks import DESCRIBED
from tests.foreign.onnx_graph.test_exports import by_tracing
from tests.verify.runs import assert_rows_hold_and_raised_ones_do_not


class ResNet(nn.Module):
    """A residual network with batch normalisation in branch and shortcut, and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2))
        self.branch = nn.Sequential(
            *(nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3), nn.SiLU()),
            *(nn.Conv2d(3, 3, 3, 1, 1, bias=False), nn.BatchNorm2d(3)),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(2, 3, 1, 2), nn.BatchNorm2d(3))
        self.other = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1))
        self.last = nn.Linear(12, 3)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean, std=0.3)
                nn.init.uniform_(part.running_var, 0.3, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.stem(x))
        long = self.shortcut(x)
        x = F.silu(self.branch(x) + long)
        return self.last((self.other(x) + x + long).flatten(1))


def _rows(shape: tuple[int, ...], classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.rand(6, *shape), torch.arange(6) % classes


@pytest.mark.parametrize("region", ["global", pytest.param("local", marks=pytest.mark.slow)])
def test_a_residual_network_is_proved_again(tmp_path: Path, region: str) -> None:
    torch.manual_seed(0)
    run = raycrt.save(
        tmp_path / "run", ResNet().eval(), _rows((1, 8, 8)), region=region, at=[0.1, 0.5]
    )
    assert_rows_hold_and_raised_ones_do_not(run)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["exact", "float32"])
@pytest.mark.parametrize("region", ["global", "local"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_every_graph_is_proved_again(tmp_path, name, region, deployment) -> None:
    make, shape = DESCRIBED[name]
    if deployment == "float32" and len(shape) == 3:
        pytest.skip("libraries may convolve by transforms in float32")
    torch.manual_seed(1)
    model = make().eval()
    classes = raycrt.as_network(model, shape).classes
    options = {"region": region, "deployment": deployment, "at": [0.1, 0.5]}
    run = raycrt.save(tmp_path / "run", model, _rows(shape, classes), **options)
    report = verify_run(run)
    assert report.sound and report.checked == 6, report.findings[:3]


@pytest.mark.slow
def test_the_same_through_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = by_tracing(ResNet().eval(), (1, 8, 8), tmp_path / "model.onnx", 17)
    network = files.load(file, None, (1, 8, 8))
    run = raycrt.save(tmp_path / "run", network, _rows((1, 8, 8)), at=[0.1, 0.5])
    report = verify_run(run)
    assert report.sound and report.checked == 6, report.findings[:3]


def _read(network: Network, shape: tuple[int, ...], place: Path) -> Model:
    save_file(
        {name: each.clone() for name, each in network.state_dict().items()},
        place / checkpoint.MODEL,
    )
    spec = description.spec_of(network, shape)
    assert spec is not None
    return Model.load(place / checkpoint.MODEL, spec, shape)


@pytest.mark.parametrize(
    "name",
    [
        "shortcut with a bias",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("two branches", "thrice")),
    ],
)
def test_the_checkers_curvature_is_above_exact_hessians(tmp_path: Path, name: str) -> None:
    make, shape = DESCRIBED[name]
    torch.manual_seed(2)
    network = raycrt.as_network(make().double().eval(), shape)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1.5
    classes = network.classes
    m = curvature_upper(_read(network, shape, tmp_path), np.full((classes, classes), np.nan))
    points = torch.randn(40, *shape, dtype=torch.float64)
    assert most_negative(network, 0, 1, points) <= m[0, 1]
    assert np.allclose(m, margin_curvature(network).numpy(), rtol=1e-6)


class Sums(nn.Module):
    """Sums of results, some used again and again, and affine layers at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(x)
        g = torch.sigmoid(h + x)
        f = F.gelu(g + x + x)
        return self.last(self.norm(torch.erf(f + g + x + f)) * 3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Sums, (3,)),
        *(DESCRIBED[name] for name in ("thrice", "two branches", "sums of affine maps")),
    ],
    ids=["sums", "thrice", "two branches", "sums of affine maps"],
)
def test_the_checkers_errors_are_above_real_ones_and_below_the_certifiers(tmp_path, make, shape):
    """Else it refuses rows whose radius rests on a margin or a gradient with small errors."""
    torch.manual_seed(3)
    network = raycrt.as_network(make().eval(), shape)
    errors = Errors.of(_read(network, shape, tmp_path))
    certifiers = RoundingErrors.of(network)
    length = torch.tensor([2.0, 50.0], dtype=torch.float64)
    for unit, kind in ((2.0**-53, torch.float64), (FLOAT32_UNIT, torch.float32)):
        own, wanted = errors.offsets(unit), certifiers.offsets(kind).numpy()
        margins = certifiers.margin(length, kind).numpy()[:, None, None]
        assert (errors.margin(length.numpy(), unit)[:, None, None] + own <= margins + wanted).all()
    gradients = certifiers.gradient(length, torch.float64).numpy()
    assert (errors.gradient(length.numpy()) <= gradients).all()
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    apart = (network(x).double() - network.double()(x.double())).detach().numpy()
    bound = errors.margin(np.linalg.norm(x.flatten(1).double().numpy(), axis=1), FLOAT32_UNIT)
    assert np.abs(apart[:, 0] - apart[:, 1]).max() > 0
    offset = errors.offsets(FLOAT32_UNIT)[0, 1]
    assert (np.abs(apart[:, 0] - apart[:, 1]) <= bound + offset).all()


def test_sums_are_proved_for_a_deployment_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = raycrt.save(
        tmp_path / "run", Sums().eval(), _rows((3,)), deployment="float32", at=[0.01, 0.1]
    )
    assert_rows_hold_and_raised_ones_do_not(run)


def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    make, shape = DESCRIBED["shortcut with a bias"]
    network = raycrt.as_network(make(), shape)
    spec = description.spec_of(network, shape)
    _read(network, shape, tmp_path)
    file = tmp_path / checkpoint.MODEL
    tensors = load_file(file)
    bias = tensors.pop(
        "maps.1.parts.1.bias"
        if "maps.1.parts.1.bias" in tensors
        else next(name for name in tensors if ".parts.1." in name and name.endswith("bias"))
    )
    save_file(tensors, file)
    with pytest.raises(InvalidInput, match="missing="):
        Model.load(file, spec, shape)
    name = next(n for n in sorted(network.state_dict()) if ".parts.1." in n and "bias" in n)
    save_file({**tensors, name: bias[:1].clone()}, file)
    with pytest.raises(InvalidInput, match="the layers fit together"):
        Model.load(file, spec, shape)


def test_maps_side_by_side_keep_the_errors_of_their_parts() -> None:
    """Compared with the sums and matrices in longer arithmetic."""
    rng = np.random.default_rng(0)

    def drawn(rows: int, columns: int) -> Affine:
        return Affine(weight=rng.normal(size=(rows, columns)), bias=rng.normal(size=rows))

    a, b, c = drawn(3, 4), drawn(2, 3), drawn(2, 4)
    first, second = stacked([[a, b], [c]])
    assert first.computed is None and second.computed is None
    whole = second.after(first)
    exact = np.concatenate([b.weight.astype(np.longdouble) @ a.weight, c.weight])
    assert (np.abs(exact - whole.weight) <= whole.known().weight).all()
    (both,) = summed([[c], [drawn(2, 5)], [identity(2)]])
    assert both.computed is not None and both.weight.shape == (2, 11)
    (one,) = summed([[c], [identity(2)]])
    assert one.computed is None and np.array_equal(one.bias, c.bias)
    (beside,) = direct([[a], [whole]])
    assert beside.weight.shape == (7, 8)
    assert np.array_equal(beside.known().weight[3:, 4:], whole.known().weight)
    assert not beside.known().weight[:3].any() and not beside.weight[:3, 4:].any()
    with pytest.raises(InvalidInput, match="one size"):
        summed([[a], [c]])
