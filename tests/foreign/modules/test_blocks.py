"""Modules with skip connections: what is read computes what they do, and is bounded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import raycrt
from raycrt.bounds.curvature import margin_curvature
from raycrt.foreign import description
from raycrt.networks.network import Network, build
from raycrt.specs import ModelSpec
from raycrt.verify.model import Model
from tests.bounds.laws import most_negative


class Block(nn.Module):
    """`finish(shortcut(x) + body(x))`."""

    def __init__(
        self,
        *body: nn.Module,
        shortcut: nn.Module | None = None,
        finish: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.body, self.finish = nn.Sequential(*body), finish
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        kept = self.shortcut(x)
        made = self.body(x)
        made += kept
        return self.finish(made)


def conv(channels: int, made: int, kernel: int = 3, stride: int = 1, **options) -> nn.Conv2d:
    return nn.Conv2d(channels, made, kernel, stride, kernel // 2, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.running_mean, layer.running_var = torch.randn(channels), torch.rand(channels) + 0.5
    return layer


class Scaled(nn.Module):
    """Multiplies by a number that float32 does not hold."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Thrice(nn.Module):
    """x is used three times, one layer twice, and an affine map is added to an affine map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) - self.b(torch.sigmoid(self.a(x))) + x
        return self.last(torch.add(h, F.silu(self.a(h) + self.b(h))))


def preactivated() -> nn.Module:
    bodies = [
        [norm(2), nn.Softplus(), conv(2, 2), norm(2), nn.SiLU(), conv(2, 2)] for _ in range(2)
    ]
    blocks = [Block(*body) for body in bodies]
    head = [norm(2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)]
    return nn.Sequential(conv(1, 2), *blocks, *head)


MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (
        lambda: nn.Sequential(
            Block(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)),
            Block(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 6)),
            nn.Linear(6, 3),
        ),
        (6,),
    ),
    "thrice": (Thrice, (6,)),
    "activation first": (
        lambda: nn.Sequential(Block(nn.Tanh(), nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)),
        (6,),
    ),
    "sum as logits": (lambda: Block(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6)), (6,)),
    "one output": (
        lambda: nn.Sequential(
            nn.Linear(6, 1), Block(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), nn.Flatten(0)
        ),
        (6,),
    ),
    "strided": (
        lambda: nn.Sequential(
            *(conv(1, 2), norm(2), nn.SiLU()),
            Block(conv(2, 2), norm(2), nn.SiLU(), conv(2, 2), norm(2), finish=F.silu),
            Block(
                *(conv(2, 3, stride=2, bias=False), norm(3), nn.SiLU(), conv(3, 3), norm(3)),
                shortcut=nn.Sequential(conv(2, 3, 1, 2, bias=False), norm(3)),
                finish=F.silu,
            ),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
        ),
        (1, 6, 6),
    ),
    "preactivated": (preactivated, (1, 6, 6)),
}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(
            *made, id=name, marks=[pytest.mark.slow] * (name in ("preactivated", "thrice"))
        )
        for name, made in MADE.items()
    ],
)
def test_what_is_read_is_what_the_call_computes_and_its_curvature_bounded(make, shape):
    torch.manual_seed(0)
    model = make().double().eval()
    network = raycrt.as_network(model, shape)
    x = torch.randn(10, *shape, dtype=torch.float64)
    logits = network(x).detach()
    wanted = model(x).detach()
    both = torch.stack([torch.zeros_like(wanted), wanted], 1) if wanted.dim() == 1 else wanted
    torch.testing.assert_close(logits, both, rtol=0, atol=1e-12)
    m = margin_curvature(network)
    worst = most_negative(network, 0, 1, x.flatten(1))
    assert worst <= float(m[0, 1]) < 1e4 * max(worst, 0.01)
    found = raycrt.certify(model, x[:2])
    assert (found.radius > 0).any() and torch.equal(found.prediction, both[:2].argmax(1))
    assert (found.radius <= raycrt.attack(model, x[:2]).distance).all()


def test_one_output_of_layers_of_several_types_is_read():
    """0.1 is no float32 number, so the layer that multiplies by it has float64 ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Scaled(0.1), nn.Linear(5, 1))
    x = torch.randn(4, 6)
    logits = raycrt.as_network(model)(x.double())
    torch.testing.assert_close(logits[:, 1:], model(x).double(), rtol=0, atol=1e-6)
    assert not logits[:, 0].any()


def test_a_block_has_no_more_layers_than_that_of_a_recipe():
    """A network of a recipe, written as a module, is read as it was: the same certificates."""
    block = Block(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))
    model = nn.Sequential(block, nn.Linear(6, 3))
    found = raycrt.as_network(model)
    layers = [{"kind": "residual", "width": 5, "activation": "tanh"}]
    made = build(ModelSpec.model_validate({"layers": layers}), (6,), 3)
    made.load_state_dict(found.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(made(x), found(x))
    assert torch.equal(raycrt.certify(made, x).radius, raycrt.certify(model, x).radius)


class Side(nn.Module):
    """Two curved branches of one result are added to each other and, later, to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) + self.norm(F.silu(self.b(x)))
        return self.last(F.softplus(self.a(h) + x) + x + self.b(x))


DESCRIBED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **MADE,
    "two branches": (Side, (6,)),
    "shortcut with a bias": (
        lambda: nn.Sequential(
            Block(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), shortcut=nn.Linear(6, 4)),
            nn.Linear(4, 3),
        ),
        (6,),
    ),
    "two activations": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.SiLU(), nn.Linear(5, 3)),
        (6,),
    ),
    "sums of affine maps": (
        lambda: nn.Sequential(
            *(Block(nn.Linear(6, 6)) for _ in range(4)), nn.Tanh(), nn.Linear(6, 3)
        ),
        (6,),
    ),
    "pool in a block": (
        lambda: nn.Sequential(
            Block(
                *(conv(2, 4), nn.AvgPool2d(2), nn.Softplus(3), conv(4, 3), norm(3)),
                shortcut=nn.Sequential(nn.AvgPool2d(2), conv(2, 3, 1), norm(3)),
                finish=F.silu,
            ),
            *(nn.Flatten(), nn.Linear(27, 3)),
        ),
        (2, 6, 6),
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_spec_describes_every_graph(tmp_path, name):
    """The network that it makes computes the same, bit for bit, and the checker reads the same."""
    make, shape = DESCRIBED[name]
    torch.manual_seed(0)
    found = raycrt.as_network(make().eval(), shape)
    spec = description.spec_of(found, shape)
    made = build(ModelSpec.model_validate(spec.model_dump()), shape, found.classes)
    made.load_state_dict(found.state_dict())
    x = torch.randn(4, *shape)
    assert torch.equal(made(x), found(x)) and made.depth == found.depth
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    read = Model.load(tmp_path / "model.safetensors", spec, shape)
    wanted = made.in_float64()(x.double()).numpy()
    for model in (read, read.joined):
        logits = model.forward(x.double().flatten(1).numpy())[0]
        assert np.allclose(logits, wanted, rtol=1e-12, atol=1e-12)
    assert read.joined.depth == found.depth


class Any_(nn.Module):
    """A random program: affine maps, some used again, activations, sums and differences."""

    kinds = (F.softplus, torch.tanh, torch.sigmoid, F.silu, F.gelu, torch.atan, torch.erf)

    def __init__(self, images: bool, seed: int) -> None:
        super().__init__()
        self.layers, self.program = nn.ModuleList(), []
        self.shape: tuple[int, ...] = (2, 6, 6) if images else (5,)
        draw, shapes = random.Random(seed), [self.shape]
        for _ in range(draw.randint(5, 10)):
            given = draw.choice(range(max(0, len(shapes) - 3), len(shapes)))
            shape = shapes[given]
            what = draw.choice(["affine", "affine", "act", "act", "add", "add", "sub", "again"])
            which = draw.randrange(len(self.kinds))
            if what in ("add", "sub"):
                which = draw.choice([k for k, other in enumerate(shapes) if other == shape])
            elif what in ("affine", "again"):
                fits = [k for k, layer in enumerate(self.layers) if self.made(layer, shape)]
                if not fits or what == "affine":
                    made = draw.choice([2, 3] if images else [4, 5, 6])
                    stride = draw.choice([1, 1, 2])
                    self.layers.append(
                        conv(shape[0], made, 3, stride) if images else nn.Linear(shape[0], made)
                    )
                    fits = [len(self.layers) - 1]
                which = draw.choice(fits)
                shape = self.made(self.layers[which], shape)
            self.program.append((what, given, which))
            shapes.append(shape)
        self.program.append(("act", len(shapes) - 1, 1))
        self.program.append(
            ("add", len(shapes), draw.choice([k for k, s in enumerate(shapes) if s == shapes[-1]]))
        )
        self.last = nn.Linear(math.prod(shapes[-1]), 3)

    @staticmethod
    def made(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a layer's results, empty if it does not take `shape`."""
        if isinstance(layer, nn.Linear):
            return (layer.out_features,) if shape == (layer.in_features,) else ()
        if shape[0] != layer.in_channels:
            return ()
        return (layer.out_channels, *((n - 1) // layer.stride[0] + 1 for n in shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        results = [x]
        for what, given, which in self.program:
            value = results[given]
            if what == "act":
                value = self.kinds[which](value)
            elif what in ("affine", "again"):
                value = self.layers[which](value)
            else:
                other = results[which]
                value = value + other if what == "add" else value - other
            results.append(value)
        return self.last(results[-1].flatten(1))


def check_random(images: bool, seed: int) -> Network:
    torch.manual_seed(seed)
    model = Any_(images, seed).double().eval()
    network = raycrt.as_network(model, model.shape)
    x = torch.randn(8, *model.shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)
        assert float((network(x) - wanted).abs().max()) <= 1e-12 * max(1, float(wanted.abs().max()))
    assert most_negative(network, 0, 1, x.flatten(1)) <= float(margin_curvature(network)[0, 1])
    found = raycrt.certify(model, x[:3])
    assert (found.radius <= raycrt.attack(model, x[:3]).distance).all()
    return network


@pytest.mark.slow
@pytest.mark.parametrize("images", [False, True])
def test_random_graphs(images):
    check_random(images, 0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [False, True])
def test_many_random_graphs(images):
    for seed in range(1, 40):
        check_random(images, seed)
