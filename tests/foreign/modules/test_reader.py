"""Torch modules of every make are read as what their call computes, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torchvision import transforms

import raycrt
from raycrt.certification.certifier import Certifier
from raycrt.errors import InvalidInput
from raycrt.foreign.modules.reader import as_network
from raycrt.networks.network import Network
from tests.models import random_network

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(torch.nn.utils.weight_norm|torch.jit|torch.ao.quantization|quantize_per|Complex).*"
)


def dense(activation: nn.Module | None = None, classes: int = 3) -> nn.Sequential:
    layer = activation or nn.Tanh()
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 8), layer, nn.Linear(8, classes))


class Own(nn.Module):
    """Layers a, b, c and a forward that is given."""

    def __init__(self, body: Callable[[Own, Tensor], Tensor], classes: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, classes)
        self.drop, self.body = nn.Dropout(), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def assert_same(model: nn.Module, shape: tuple[int, ...] = (6,)) -> Network:
    """The network agrees with the evaluated model at points, and the model is as it was."""
    modes = [part.training for part in model.modules()]
    random, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    network = as_network(model, shape)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [part.training for part in model.modules()]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])
    x = torch.randn(20, *shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x.to(network.dtype)).float(), model.eval()(x))
    return network


BODIES: dict[str, Callable[[Own, Tensor], Tensor]] = {
    "modules": lambda m, x: m.c(torch.tanh(m.b(m.drop(F.tanh(m.a(x.view(x.size(0), -1))))))),
    "flatten": lambda m, x: m.c(m.a(torch.flatten(x, 1)).sigmoid()),
    "view": lambda m, x: m.c(F.silu(m.a(x.view(-1, 6)), inplace=True)),
    "shape": lambda m, x: m.c(F.gelu(m.a(x.reshape(x.shape[0], -1)))),
    "functions": lambda m, x: F.linear(
        F.softplus(F.linear(x.flatten(1), m.a.weight), 5), m.c.weight
    ),
    "products": lambda m, x: torch.tanh(x.flatten(1) @ m.a.weight.T + m.a.bias) @ m.c.weight.t(),
    "dropout": lambda m, x: m.c(F.dropout(torch.erf(m.a(x.flatten(1))), training=m.training)),
    "normalising": lambda m, x: m.c(torch.atan(m.a(((x - 0.1307) / 0.3081).flatten(1)))),
    "scaling": lambda m, x: m.c(torch.tanh(m.a((2 * x / 255 - 1).flatten(1)))),
    "negative": lambda m, x: m.c(torch.tanh(m.a((1 - x).flatten(1)))) / -2,
    "adjusted": lambda m, x: m.c(torch.tanh(m.a(x.flatten(1)))) + torch.tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_forward_of_one_s_own(body):
    assert_same(Own(body), (1, 2, 3))


def test_an_image_network_in_functions():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
            self.register_buffer("mean", torch.rand(2, 1, 1))
            self.register_buffer("std", torch.rand(1, 2, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.avg_pool2d((x - self.mean) / self.std, 2)
            x = torch.tanh(self.norm(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)))
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    model = Net()
    model.norm.running_mean, model.norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    network = assert_same(model, (2, 8, 8))
    images = torch.rand(5, 2, 8, 8)
    found = raycrt.certify(model, images)
    assert (found.radius > 0).all() and torch.equal(found.prediction, model(images).argmax(1))
    assert (found.radius <= raycrt.attack(model, images).distance).all()
    assert (network.in_float64()(images.double()).argmax(1) == found.prediction).all()


def test_a_division_is_by_the_number_itself():
    """No factor 1 / 0.3081 that is rounded: each entry is that of a quotient in float64."""
    network = as_network(Own(lambda m, x: m.c(torch.tanh(m.a(x / 0.3081)))), (6,))
    first = network.in_float64().layers[0].links[0]
    x = torch.rand(50, 6, dtype=torch.float64)
    torch.testing.assert_close(first(x), x / 0.3081, rtol=2.0**-51, atol=0)


def test_torchvision_s_normalize():
    normalize = transforms.Normalize([0.5, 0.4], [0.25, 0.3])
    assert_same(nn.Sequential(normalize, nn.Flatten(), *dense()), (2, 1, 3))


class Scaled(nn.Sequential):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 1.5 + torch.arange(3)


class Shortened(nn.Sequential):
    def __iter__(self):
        return iter([layer for name, layer in self._modules.items() if name not in ("2", "3")])


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Plain(nn.Linear):
    """Another name."""


def replaced() -> nn.Module:
    model = dense()
    forward = model.forward
    model.forward = lambda x: forward((x - 0.5) / 0.25)
    return model


def hooked() -> nn.Module:
    model = dense()
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def compiled_in_place() -> nn.Module:
    model = dense()
    model.compile()
    return model


def one_layer_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


class Functional(nn.Module):
    """Calls a module with other weights than it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.model = dense()

    def forward(self, x: Tensor) -> Tensor:
        doubled = {name: 2 * tensor for name, tensor in self.model.named_parameters()}
        return torch.func.functional_call(self.model, doubled, (x,))


MADE: dict[str, Callable[[], nn.Module]] = {
    "call": lambda: Scaled(*dense()),
    "iter": lambda: Shortened(*dense()),
    "forward": replaced,
    "hooks": hooked,
    "subclasses": lambda: nn.Sequential(Twice(6, 8), nn.Tanh(), Plain(8, 3)),
    "parallel": lambda: nn.DataParallel(dense()),
    "inner parallel": lambda: nn.Sequential(nn.DataParallel(dense()), nn.Tanh(), nn.Linear(3, 2)),
    "averaged": lambda: AveragedModel(dense()),
    "graph": lambda: torch.fx.symbolic_trace(dense()),
    "one layer twice": one_layer_twice,
    "functional": Functional,
    "averaged, compiled": lambda: AveragedModel(torch.compile(dense())),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_read_is_what_the_call_computes(make):
    assert_same(make())


@pytest.mark.parametrize("make", [lambda: torch.compile(dense()), compiled_in_place])
def test_compiled_modules_are_read_without_compiling(make, monkeypatch):
    model = make()
    wanted = as_network(getattr(model, "_orig_mod", model), (6,))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *a, **k: pytest.fail("ran"))
    found = as_network(model, (6,))
    x = torch.rand(4, 6)
    assert torch.equal(found(x), wanted(x))


def test_a_program_of_torch_export_is_read_by_its_module():
    model = dense()
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.rand(2, 6),), dynamic_shapes=sizes)
    network = as_network(program.module(), (6,))
    x = torch.randn(5, 6)
    torch.testing.assert_close(network(x), model(x))


REPARAMETRIZED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("change", REPARAMETRIZED.values(), ids=REPARAMETRIZED)
def test_weights_are_those_that_the_call_uses(change):
    """Also where a parameter has moved since the last call, on which old hooks leave a weight."""
    model = dense()
    change(model[2])
    model(torch.rand(2, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    network = assert_same(model)
    model(torch.rand(2, 6))
    assert torch.equal(network.layers[1].matrix(), model[2].weight)


def test_layers_that_compute_their_weights():
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)

    assert_same(nn.Sequential(Standardised(6, 8), nn.Tanh(), Standardised(8, 3)))


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: F.softmax(z / 2.5, dim=1),
    "method": lambda z: (z * 0.1).log_softmax(1),
    "temperature": lambda z: z / torch.tensor(3.0),
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_what_moves_no_decision_is_left_out(tail):
    model = Own(lambda m, x: tail(m.c(torch.tanh(m.a(x)))))
    network = as_network(model, (6,))
    assert torch.equal(network.layers[-1].matrix(), model.c.weight)
    x = torch.rand(5, 6)
    assert torch.equal(raycrt.certify(model, x).radius, Certifier(network)(x).radius)
    assert torch.equal(raycrt.certify(model, x).prediction, model.eval()(x).argmax(1))


ONE_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda z: z,
    "sigmoid": torch.sigmoid,
    "squeezed": lambda z: z.squeeze(1),
    "squeezed sigmoid": lambda z: torch.sigmoid(z.squeeze(-1)),
    "selected": lambda z: z[:, 0],
    "flat": lambda z: z.view(-1),
}


@pytest.mark.slow
@pytest.mark.parametrize("finish", ONE_OUTPUT.values(), ids=ONE_OUTPUT)
def test_one_output_is_two_classes_with_the_positive_one_as_1(finish):
    model = Own(lambda m, x: finish(m.c(torch.tanh(3 * m.a(x)))), classes=1)
    x = torch.randn(40, 6)
    found = raycrt.certify(model, x)
    positive = model.c(torch.tanh(3 * model.a(x)))[:, 0] > 0
    assert torch.equal(found.prediction, positive.long()) and positive.any() and not positive.all()
    assert (found.radius > 0).all()
    network = as_network(model, (6,))
    assert torch.equal(network(x)[:, 0], torch.zeros(40))
    attacked = raycrt.attack(model, x)
    there = network.in_float64()(x.double() + attacked.perturbation)[:, 1] > 0
    assert torch.equal(there != positive, attacked.distance.isfinite())


def test_softmax_as_a_module():
    for tail in (nn.Softmax(dim=1), nn.LogSoftmax(dim=-1)):
        model = nn.Sequential(*dense(), tail)
        assert torch.equal(as_network(model, (6,)).layers[-1].matrix(), model[4].weight)


def test_a_sigmoid_behind_several_outputs_is_refused():
    with pytest.raises(InvalidInput, match=r"one output, a softmax several.*Sigmoid.*several"):
        as_network(nn.Sequential(*dense(), nn.Sigmoid()), (6,))
    with pytest.raises(InvalidInput, match=r"one output, a softmax several.*Softmax.*outputs='one"):
        as_network(nn.Sequential(*dense(classes=1), nn.Softmax(1)), (6,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_taken_exactly_in_their_own_type(dtype):
    model = dense().to(dtype)
    network = as_network(model, (6,))
    assert network.dtype == dtype and torch.equal(network.layers[1].matrix(), model[2].weight)


def test_weights_of_several_types_are_held_by_one():
    model = dense()
    model[0].bias.data, model[2].weight.data = model[0].bias.half(), model[2].weight.bfloat16()
    network = as_network(model, (6,))
    assert network.dtype == torch.float32
    assert torch.equal(network.layers[1].matrix(), model[2].weight.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_pool_has_the_type_of_the_weights(dtype):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    network = as_network(nn.Sequential(*model, nn.Linear(8, 2)).to(dtype), (1, 6, 6))
    assert network(torch.zeros(1, 36, dtype=dtype)).dtype == dtype


class Hidden(nn.Sequential):
    """What a placeholder for the input does not show: it is no tensor."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(*dense())
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x)) if isinstance(x, Tensor) else super().forward(x)


class Counting(nn.Sequential):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 if self.calls < 3 else 2)


class Random(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hidden(lambda z: z * (1 + 1e-4)),
        lambda: Hidden(lambda z: z + torch.tensor([0.0, 0.0, 1e-9])),
        lambda: Hidden(lambda z: z.clamp(-2, 2)),
        lambda: Hidden(lambda z: z[:, [1, 0, 2]]),
        lambda: Counting(*dense()),
        lambda: Random(*dense()),
    ],
)
def test_what_the_graph_does_not_show_the_comparison_does(make):
    for ask in (as_network, raycrt.certify, raycrt.attack):
        model = make()
        model[4].weight.data *= 4
        with pytest.raises(InvalidInput, match=r"the model's output \d is .* rounding explains"):
            ask(model, (6,)) if ask is as_network else ask(model, torch.rand(4, 6))


def test_images_are_among_the_points_of_comparison():
    images = torch.rand(4, 6)
    model = Hidden(lambda z: z)
    model.forward = lambda x: (
        -nn.Sequential.forward(model, x)
        if isinstance(x, Tensor) and len(x) == 4
        else nn.Sequential.forward(model, x)
    )
    as_network(model, (6,))
    for ask in (raycrt.certify, raycrt.attack):
        with pytest.raises(InvalidInput, match="but at given input"):
            ask(model, images)


def int8(model: nn.Sequential) -> nn.Module:
    model[2].weight = nn.Parameter(model[2].weight.data.to(torch.int8), requires_grad=False)
    return model


def float8(model: nn.Sequential) -> nn.Module:
    model[2].weight = nn.Parameter(model[2].weight.data.to(torch.float8_e4m3fn), False)
    return model


class Gated(nn.Sequential):
    def _call_impl(self, x: Tensor) -> Tensor:
        return torch.relu(super()._call_impl(x))


class Stochastic(nn.Dropout):
    def train(self, mode: bool = True) -> Stochastic:
        return super().train(True)


def in_place(z: Tensor) -> Tensor:
    """Returns what it was given, whose numbers are others."""
    z.mul_(2)
    return z


def function_in_place(z: Tensor) -> Tensor:
    torch.tanh_(z)
    return z


def view_in_place(z: Tensor) -> Tensor:
    z.view(-1, 8).mul_(2)
    return z


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "product": (
        lambda: Own(lambda m, x: m.c((h := torch.tanh(m.a(x))) * torch.tanh(m.b(h)))),
        r"operation mul at .*test_reader.py:\d+ takes several results .* added or subtracted",
    ),
    "joined": (
        lambda: Own(lambda m, x: m.c(torch.cat([torch.tanh(m.a(x)), x], 1))),
        r"operation cat at .*test_reader.py:\d+ takes several results",
    ),
    "sizes": (
        lambda: Own(lambda m, x: m.c(torch.tanh(m.a(x)) + x)),
        r"operation add at .*test_reader.py:\d+: .* must have one shape: \[\(8,\), \(6,\)\]",
    ),
    "branch in place": (
        lambda: Own(lambda m, x: m.c((h := m.a(x)) + m.b(F.silu(h, inplace=True)))),
        r"operation silu at .*test_reader.py:\d+ must not change in place a tensor that is used",
    ),
    "function in place": (
        lambda: Own(lambda m, x: m.c(function_in_place(m.a(x)))),
        r"operation tanh_ at .*test_reader.py:\d+ must not change in place",
    ),
    "a view in place": (
        lambda: Own(lambda m, x: m.c((h := m.a(x)) + torch.tanh(h.view(-1, 8).mul_(2)))),
        "apart where rounding explains",
    ),
    "unused in place": (
        lambda: Own(lambda m, x: m.c(torch.tanh(view_in_place(m.a(x))))),
        "operation mul_ at .* changes a tensor in place, and its result is not used",
    ),
    "line": (lambda: Own(lambda m, x: m.c(F.relu(m.a(x)))), r"relu at .*test_reader.py:\d+ is"),
    "branch on values": (
        lambda: Own(lambda m, x: m.c(torch.tanh(m.a(x if x.sum() > 0 else -x)))),
        r"the same for every input, .* TraceError at .*test_reader.py:\d+",
    ),
    "in place": (
        lambda: Own(lambda m, x: m.c(torch.tanh(in_place(m.a(x))))),
        "operation mul_ at .* must not change in place a tensor that is used elsewhere",
    ),
    "dropout": (lambda: Own(lambda m, x: m.c(F.dropout(torch.tanh(m.a(x))))), "dropout is off"),
    "two inputs": (lambda: Own(lambda m, x: (m.c(torch.tanh(m.a(x))), x)), "return the tensor"),
    "softmax over rows": (
        lambda: nn.Sequential(*dense(), nn.Softmax(0)),
        r"layer 5 \(Softmax\) is",
    ),
    "nothing": (lambda: Own(lambda m, x: x), "must have affine layers with an activation"),
    "call": (lambda: Gated(*dense()), "operation relu at"),
    "script": (lambda: torch.jit.script(dense()), "layers of torch.jit can't be read"),
    "trace": (lambda: torch.jit.trace(dense(), torch.zeros(1, 6)), "layers of torch.jit"),
    "meta": (lambda: dense().to("meta"), "weights must have values, but 0.weight"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh()), "weights must have values"),
    "int8": (lambda: int8(dense()), r"layer 2 \(Linear\): weights must be .* is torch.int8"),
    "float8": (lambda: float8(dense()), r"layer 2 \(Linear\): .* is torch.float8_e4m3fn"),
    "complex": (lambda: dense().to(torch.complex64), r"0 \(Linear\): .* is torch.complex64"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(dense(), {nn.Linear}),
        r"layer 0 \(Linear\) of torch.ao.nn.quantized\S+ is not supported",
    ),
    "own train()": (
        lambda: nn.Sequential(nn.Linear(6, 8), Stochastic(), nn.Tanh(), nn.Linear(8, 2)).eval(),
        r"call model.eval\(\) first\), but layer 1 \(Stochastic\) is in training mode",
    ),
    "division by 0": (lambda: Own(lambda m, x: m.c(torch.tanh(m.a(x / 0)))), "divisor != 0"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(make, message):
    with pytest.raises(InvalidInput, match=message):
        as_network(make(), (6,))


@pytest.mark.parametrize("shape", [6, (0,), (2.0, 3), (-1, 6)])
def test_shapes_that_are_none(shape):
    with pytest.raises(InvalidInput, match="input_shape is the sizes > 0"):
        as_network(dense(), shape)


@pytest.mark.parametrize(
    "register", [register_module_forward_hook, register_module_forward_pre_hook]
)
def test_global_hooks_are_refused_everywhere(register):
    """They run in the network's own calls too."""
    made, x = random_network(2), torch.rand(3, 5)
    handle = register(lambda *arguments: None)
    try:
        for model in (made, nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))):
            for ask in (raycrt.certify, raycrt.attack):
                with pytest.raises(InvalidInput, match="global forward hooks must be removed"):
                    ask(model, x)
        with pytest.raises(InvalidInput, match="global forward hooks"):
            Certifier(made)
    finally:
        handle.remove()
    assert (raycrt.certify(made, x).radius > 0).any()


def test_a_network_that_is_called_otherwise_is_refused():
    class Doubled(Network):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(2 * images)

    made, x = random_network(2), torch.rand(3, 5)
    other = Doubled(made.layers, made.activation)
    made.layers[0].register_forward_hook(lambda module, inputs, output: output / 2)
    replaced = random_network(2)
    replaced.forward = lambda images: replaced.layers[0](images)
    for model in (made, other, replaced):
        for ask in (raycrt.certify, raycrt.attack, lambda model, x: Certifier(model)):
            with pytest.raises(InvalidInput, match="a Network must have no"):
                ask(model, x)
