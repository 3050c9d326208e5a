"""Weights that are stored in parts are the module's own effective weights, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as new
from torch.nn.utils import prune, spectral_norm, weight_norm

from raycrt.errors import InvalidInput
from raycrt.foreign import files
from raycrt.foreign.weights.parametrizations import fold
from raycrt.specs import ModelSpec

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm, old": weight_norm,
    "weight norm, old, columns": lambda m: weight_norm(m, dim=1),
    "weight norm, old, whole": lambda m: weight_norm(m, dim=None),
    "weight norm, new": new.weight_norm,
    "weight norm, new, columns": lambda m: new.weight_norm(m, dim=1),
    "spectral norm, old": spectral_norm,
    "spectral norm, new": new.spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.4),
    "bias pruned too": lambda m: prune.random_unstructured(
        prune.l1_unstructured(m, "weight", amount=0.4), "bias", amount=0.5
    ),
}


def parametrised(kind: str, layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    made = KINDS[kind](layer.to(dtype))
    for name, parameter in made.named_parameters():
        if name.endswith(("_g", "original0")):
            parameter.data *= 1.7
    return made.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_effective_weight(kind: str, dtype: torch.dtype) -> None:
    for layer, x in ((nn.Linear(7, 5), (2, 7)), (nn.Conv2d(3, 4, 3), (2, 3, 5, 5))):
        module = parametrised(kind, layer, dtype)
        if "spectral" in kind:
            module.train()(torch.rand(x, dtype=dtype))
        module.eval()(torch.rand(x, dtype=dtype))
        found = fold({f"net.0.{n}": t.detach() for n, t in module.state_dict().items()})
        assert found.keys() == {"net.0.weight", "net.0.bias"}
        assert torch.equal(found["net.0.weight"], module.weight)
        assert torch.equal(found["net.0.bias"], module.bias)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_one_output_and_one_input() -> None:
    for shape in ((1, 4), (4, 1), (1, 1)):
        for dim in (0, 1):
            module = weight_norm(nn.Linear(shape[1], shape[0]), dim=dim)
            assert torch.equal(fold(dict(module.state_dict()))["weight"], module.weight)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_network_of_parametrised_layers() -> None:
    model = nn.Sequential(
        parametrised("weight norm, new", nn.Linear(6, 8), torch.float32),
        nn.Tanh(),
        parametrised("pruned", nn.Linear(8, 8), torch.float32),
        nn.Tanh(),
        parametrised("spectral norm, old", nn.Linear(8, 3), torch.float32),
    )
    x = torch.rand(4, 6)
    found = files.from_state_dict(model.eval().state_dict(), ModelSpec(activation="tanh"))
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))


class _Own(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


@pytest.mark.parametrize(
    "make",
    [
        new.orthogonal,
        lambda m: new.orthogonal(m, use_trivialization=False),
        lambda m: torch.nn.utils.parametrize.register_parametrization(m, "weight", _Own()),
    ],
)
def test_what_only_the_module_knows_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    state = make(nn.Linear(6, 6)).state_dict()
    with pytest.raises(InvalidInput, match=r"weight must be stored as itself .*original"):
        fold(state)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight_g": (3, 2), "a.weight_v": (3, 4)}, r"parts of a.weight must fit.*\(3, 2\)"),
        ({"a.weight_orig": (3, 4), "a.weight_mask": (4, 3)}, "parts of a.weight must fit"),
        ({"a.weight_orig": (3, 4), "a.weight_u": (2,), "a.weight_v": (4,)}, "must fit"),
        ({"a.weight_orig": (3, 4), "a.weight_u": (3,)}, "must be stored as itself"),
        ({"a.weight": (3, 4), "a.weight_g": (3, 1), "a.weight_v": (3, 4)}, "beside its parts"),
    ],
)
def test_parts_that_do_not_fit(tensors: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fold({name: torch.ones(shape) for name, shape in tensors.items()})
