"""Bare weights: the network that names, shapes and a spec say, or a refusal."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from raycrt import Certifier, certificates, checkpoint, cli, models, network
from raycrt.distributed import stages
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.spec import ModelSpec, Spec
from raycrt.verify import verify_run

SPEC = ModelSpec(depth=3, width=8, activation="tanh")
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def dense(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def named(model: nn.Sequential, *names: str) -> State:
    """The state of the `Linear` layers of `model` under other names."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    return {
        f"{name}.{role}": tensor.detach()
        for name, layer in zip(names, linear, strict=True)
        for role, tensor in layer.named_parameters()
    }


def assert_same(model: nn.Module, found: Network, *shape: int) -> None:
    x = torch.rand(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double().eval()(x)
        torch.testing.assert_close(found.double()(x), expected, rtol=0, atol=1e-12)


class TestOrder:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(
        "names",
        [
            ("0", "2", "4"),
            ("module.features.0", "module.features.2", "module.features.4"),
            ("fc1", "fc2", "fc3"),
            ("layers.8.linear", "layers.9.linear", "layers.10.linear"),
            ("0.0", "0.2", "1.0"),
            ("hidden1", "hidden2", "out"),
            ("body.0", "body.2", "head"),
        ],
    )
    def test_names_with_numbers(self, tmp_path: Path, suffix: str, names: tuple[str, ...]) -> None:
        model, file = dense(6, 8, 8, 3), tmp_path / f"weights{suffix}"
        (torch.save if suffix == ".pt" else save_file)(named(model, *names), file)
        assert_same(model, models.load(file, SPEC), 6)

    @pytest.mark.parametrize("roles", [("W", "b"), ("weight", "bias"), ("weights.", "biases.")])
    def test_numbers_behind_the_role(self, roles: tuple[str, str]) -> None:
        model, (weight, bias) = dense(6, 8, 8, 3), roles
        of = {0: 1, 2: 2, 4: 3}
        state = {f"{bias}{of[k]}": model[k].bias.detach() for k in of}
        state |= {f"{weight}{of[k]}": model[k].weight.detach() for k in of}
        assert_same(model, models.from_state_dict(state, SPEC), 6)

    @pytest.mark.parametrize(
        "names", [("input", "hidden", "out"), ("one", "two", "three"), ("a", "b1", "c1")]
    )
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_names_that_fix_no_order(
        self, tmp_path: Path, names: tuple[str, ...], suffix: str
    ) -> None:
        """Of four layers two can be exchanged; `layers` says which is first."""
        model, file = dense(6, 8, 8, 8, 3), tmp_path / f"weights{suffix}"
        (torch.save if suffix == ".pt" else save_file)(named(model, *names, "last"), file)
        with pytest.raises(InvalidInput, match=r"more than one order fits .*--layers") as caught:
            models.load(file, SPEC)
        assert str(file) in str(caught.value)
        assert_same(model, models.load(file, SPEC, layers=[*names, "last"]), 6)

    def test_one_order_that_fits_is_taken_whatever_the_names(self) -> None:
        model = dense(6, 8, 5, 3)
        state = named(model, "in", "middle", "out")
        assert_same(model, models.from_state_dict(state, SPEC), 6)
        images = models.from_state_dict(state, SPEC, (1, 2, 3))
        assert_same(nn.Sequential(nn.Flatten(), *model), images, 1, 2, 3)

    def test_stored_in_another_order_than_named(self, tmp_path: Path) -> None:
        state = named(dense(6, 8, 8, 8, 3), "fc1", "fc2", "fc3", "fc4")
        exchanged = {n: state[n] for n in sorted(state, key=lambda n: "1342".index(n[2]))}
        torch.save(exchanged, tmp_path / "w.pt")
        with pytest.raises(
            InvalidInput, match="names say fc1, fc2, fc3, fc4, and stored are fc1, fc3, fc4, fc2"
        ):
            models.load(tmp_path / "w.pt", SPEC)
        order = ["fc1", "fc3", "fc2", "fc4"]
        found = models.load(tmp_path / "w.pt", SPEC, layers=order)
        for layer, name in zip(found.layers, order, strict=True):
            assert torch.equal(layer.matrix(), state[f"{name}.weight"])

    def test_own_names_decide_before_order(self) -> None:
        state = network.build(SPEC, (6,), 3).state_dict()
        order = sorted(state, key=lambda name: (state[name].dim(), name), reverse=True)
        found = models.from_state_dict({name: state[name] for name in order}, SPEC)
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_bias_before_weight(self) -> None:
        model = dense(6, 8, 8, 3)
        state = named(model, "0", "2", "4")
        biases_first = {n: state[n] for n in sorted(state, key=lambda n: state[n].dim())}
        assert_same(model, models.from_state_dict(biases_first, SPEC), 6)

    def test_a_missing_activation_is_not_put_in(self) -> None:
        """Layers 2 and 3 of a Sequential have nothing between them."""
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match="where the activation stands among 0, 2, 3"):
            models.from_state_dict(model.state_dict(), SPEC)
        found = models.from_state_dict(model.state_dict(), SPEC, layers=["0", "2+3"])
        assert_same(model, found, 6)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (["fc1", "fc2"], "every layer, but net.fc3 is left out"),
            (["fc1", "fc2", "fc3", "fc3"], "'fc3' names none that is left"),
            (["fc1", "fc2", "out"], "'out' names none"),
            (["fc1", "fc3", "fc2"], r"fc2 does not take \(3,\) in the order"),
        ],
    )
    def test_stated_order_that_is_none(self, layers: list[str], message: str) -> None:
        state = named(dense(6, 8, 8, 3), "net.fc1", "net.fc2", "net.fc3")
        with pytest.raises(InvalidInput, match=message):
            models.from_state_dict(state, SPEC, layers=layers)

    def test_many_names_without_an_order_end(self) -> None:
        names = [f"layer_{a}{b}" for a in "abcdef" for b in "abcdef"]
        state = named(dense(8, *[8] * 35, 8), *names)
        state |= {f"last_{n}": t for n, t in named(dense(9, 9), "x").items()}
        with pytest.raises(InvalidInput, match="names must fix the order"):
            models.from_state_dict(state, SPEC, (8,))

    def test_more_than_ten_layers_in_safetensors(self, tmp_path: Path) -> None:
        """`10.weight` sorts before `2.weight` as text."""
        model = dense(*[4] * 12)
        save_file(model.state_dict(), tmp_path / "deep.safetensors")
        assert_same(model, models.load(tmp_path / "deep.safetensors", SPEC), 4)


class TestShapes:
    def test_the_file_decides_depth_and_widths(self) -> None:
        for widths in ((64, 50, 25, 10), (64, 20, 10), (64, 8, 8, 8, 8, 10)):
            model = dense(*widths)
            assert_same(model, models.from_state_dict(model.state_dict(), SPEC), 64)

    def test_no_bias(self) -> None:
        model = dense(6, 8, 8, 10, bias=False)
        found = models.from_state_dict(model.state_dict(), SPEC)
        assert_same(model, found, 6)
        assert models.described(Path("w.pt"), found, SPEC) == SPEC

    def test_convolutions(self, tmp_path: Path) -> None:
        spec, file = ModelSpec(channels=(3, 5), kernel=4, depth=1), tmp_path / "weights.pt"
        model = network.build(spec, (1, 8, 8), 10)
        torch.save(model.state_dict(), file)
        found = models.load(file, spec, (1, 8, 8))
        assert_same(model, found, 1, 8, 8)
        assert models.described(file, found, spec) == spec
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            models.load(file, spec)
        with pytest.raises(InvalidInput, match="the spec must have channels for convolutions"):
            models.load(file, SPEC, (1, 8, 8))
        other = spec.model_copy(update={"kernel": 3})
        with pytest.raises(InvalidInput, match=r"does not take .* with kernel 3 and stride 2"):
            models.load(file, other, (1, 8, 8))

    def test_convolutions_in_two_sequentials(self) -> None:
        model = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(
                    nn.Conv2d(1, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh()
                ),
                classifier=nn.Sequential(
                    nn.Flatten(), nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 10)
                ),
            )
        )
        spec = ModelSpec(channels=(1,), depth=1, activation="tanh")
        found = models.from_state_dict(model.state_dict(), spec, (1, 8, 8))
        assert_same(model, found, 1, 8, 8)
        told = models.described(Path("w.pt"), found, spec)
        assert told is not None and (told.channels, told.depth, told.width) == ((4, 6), 2, 7)

    def test_another_number_of_classes_is_more_than_a_spec_can_say(self) -> None:
        found = models.from_state_dict(dense(6, 8, 8, 3).state_dict(), SPEC)
        assert models.described(Path("w.pt"), found, SPEC) is None
        assert models.described(Path("w.onnx"), found, SPEC) is None

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({}, "a matrix for each layer, but got nothing"),
            ({"a.weight": (3, 4), "a.bias": (4,)}, r"but there are a.weight \(3, 4\), a.bias"),
            ({"a.weight": (3, 4), "norm.weight": (3,), "norm.bias": (3,)}, "norm.weight"),
            ({"a.weight": (3, 4, 5)}, r"a.weight \(3, 4, 5\)"),
            ({"a.weight": (3, 4), "scale": ()}, "scale"),
            ({"a.weight": (3, 4), "a.alpha": (1,)}, "a.alpha"),
            ({"a.0.weight": (3, 4), "a.1.weight": (2, 5)}, r"a.1 does not take \(3,\)"),
            ({"a.weight": (3, 4), "b.weight": (2, 5)}, "no order of a .* does"),
            ({"a.weight": (0, 4), "b.weight": (2, 0)}, r"a.weight \(0, 4\)"),
        ],
    )
    def test_nothing_is_left_over(self, state: dict[str, tuple], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            models.from_state_dict({n: torch.ones(s) for n, s in state.items()}, SPEC)

    def test_weights_without_spec(self, tmp_path: Path) -> None:
        torch.save(dense(6, 8, 3).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(InvalidInput, match="a spec of the model must be given"):
            models.load(tmp_path / "weights.pt")


def normed(*layers: nn.Module) -> nn.Sequential:
    """A Sequential whose batch normalisations have seen something."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features),
                torch.rand(layer.num_features) + 0.2,
            )
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return nn.Sequential(*layers)


class TestBatchNorm:
    @pytest.mark.parametrize(
        "model",
        [
            normed(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
            normed(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)),
            normed(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
            normed(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.BatchNorm1d(3)),
            normed(
                *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()),
                *(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
            ),
        ],
    )
    def test_the_place_of_the_activation_is_a_missing_number(self, model: nn.Sequential) -> None:
        found = models.from_state_dict(model.state_dict(), SPEC, batch_norm_eps=1e-5)
        assert_same(model, found, 6)
        assert models.described(Path("w.pt"), found, SPEC) is None
        assert (Certifier(found, steps=2)(torch.rand(3, 6)).radius > 0).any()

    def test_convolutional(self) -> None:
        model = normed(
            *(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        )
        spec, state = ModelSpec(channels=(1,), depth=1, activation="tanh"), model.state_dict()
        found = models.from_state_dict(state, spec, (2, 8, 8), batch_norm_eps=1e-5)
        assert_same(model, found, 2, 8, 8)

    @pytest.mark.parametrize(
        "layers",
        [
            [nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)],
            [nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)],
            [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh(), nn.BatchNorm1d(3)],
        ],
    )
    def test_several_places(self, layers: list[nn.Module]) -> None:
        with pytest.raises(InvalidInput, match="where the activation stands among"):
            models.from_state_dict(normed(*layers).state_dict(), SPEC, batch_norm_eps=1e-5)

    def test_names_tell_no_place(self) -> None:
        first, norm, last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        normed(norm)
        for stated, order in (
            (["fc1+bn1", "fc2"], (first, norm, nn.Tanh(), last)),
            (["fc1", "bn1+fc2"], (first, nn.Tanh(), norm, last)),
        ):
            state = nn.ModuleDict({"fc1": first, "bn1": norm, "fc2": last}).float().state_dict()
            with pytest.raises(InvalidInput, match=r"activation stands|more than one order"):
                models.from_state_dict(state, SPEC, batch_norm_eps=1e-5)
            found = models.from_state_dict(state, SPEC, layers=stated, batch_norm_eps=1e-5)
            assert_same(nn.Sequential(*order), found, 6)

    def test_eps_is_asked_for(self) -> None:
        model = normed(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=0.1), nn.Tanh(), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match=r"batch_norm_eps must be given.*1.running_mean"):
            models.from_state_dict(model.state_dict(), SPEC)
        found = models.from_state_dict(model.state_dict(), SPEC, batch_norm_eps=0.1)
        assert_same(model, found, 6)
        with pytest.raises(InvalidInput, match="must be left out unless"):
            models.from_state_dict(dense(6, 8, 3).state_dict(), SPEC, batch_norm_eps=0.1)


class Normalised(nn.Module):
    """Images less a mean, by a standard deviation, then a network."""

    def __init__(self, mean: Any, std: Any, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("std", torch.as_tensor(std))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


class TestNormaliser:
    @pytest.mark.parametrize(
        ("mean", "std"),
        [
            (0.1307, 0.3081),
            (torch.rand(1, 2, 1, 1), torch.rand(1, 2, 1, 1) + 0.1),
            (torch.rand(2, 1, 1), torch.rand(2, 1, 1) + 0.1),
            (torch.rand(2, 4, 4), torch.rand(2, 4, 4) + 0.1),
            (torch.rand(1), torch.rand(2, 4, 4) + 0.1),
        ],
    )
    def test_stands_first_and_is_exact(self, mean: Any, std: Any) -> None:
        body = nn.Sequential(nn.Flatten(), *dense(32, 8, 3))
        model = Normalised(mean, std, body)
        found = models.from_state_dict(model.state_dict(), SPEC, (2, 4, 4))
        assert_same(model, found, 2, 4, 4)
        first = found.layers[0].links[0]  # type: ignore[attr-defined]
        expected = model.std.double().expand(1, 2, 4, 4).flatten()
        assert torch.equal(first.variance.sqrt(), expected)
        assert models.described(Path("w.pt"), found, SPEC) is None

    def test_channels_and_columns_are_not_confused(self) -> None:
        state = {"mean": torch.rand(4), "std": torch.ones(4), **dense(64, 8, 3).state_dict()}
        with pytest.raises(InvalidInput, match=r"mean must be for .* but has shape \(4,\)"):
            models.from_state_dict(state, SPEC, (4, 4, 4))

    def test_before_convolutions(self) -> None:
        body = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
        model = Normalised(torch.rand(2, 1, 1), torch.rand(2, 1, 1) + 0.1, body)
        spec = ModelSpec(channels=(1,), depth=1, activation="tanh")
        found = models.from_state_dict(model.state_dict(), spec, (2, 8, 8))
        assert_same(model, found, 2, 8, 8)

    def test_one_number_for_a_channel(self) -> None:
        """People write `mean[None, :, None, None]`."""
        state = {"mean": torch.rand(3), "std": torch.rand(3) + 0.1, **dense(75, 8, 3).state_dict()}
        found = models.from_state_dict(state, SPEC, (3, 5, 5))
        links = found.layers[0].links  # type: ignore[attr-defined]
        assert torch.equal(links[0].mean, state["mean"].double().repeat_interleave(25))

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            (torch.rand(7), torch.rand(7), "mean must be for all inputs of shape"),
            (torch.rand(4), torch.rand(4), "mean must be for all inputs of shape"),
            (torch.rand(4, 4, 2), torch.rand(1), "mean must be for all inputs of shape"),
            (0.5, -0.5, "std must be made of positive float32 numbers"),
            (0.5, torch.tensor(0.1, dtype=torch.float64), "std must be made of positive float32"),
        ],
    )
    def test_refused(self, mean: Any, std: Any, message: str) -> None:
        model = Normalised(mean, std, dense(32, 8, 3))
        with pytest.raises(InvalidInput, match=message):
            models.from_state_dict(model.state_dict(), SPEC, (2, 4, 4))
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            models.from_state_dict(model.state_dict(), SPEC)


class TestCommand:
    @pytest.fixture
    def certify(self, monkeypatch: pytest.MonkeyPatch):
        """Runs the command without certifying: exit code, output, and what is to be certified."""
        app, given = typer.Typer(), []
        app.command()(cli.certify)

        def kept(spec: Spec, network: Network, out: Path, *, told: bool, **named: Any) -> None:
            given.append((network, spec.model if told else None))

        monkeypatch.setattr(stages, "certify", kept)

        def run(file: Path, *options: str):
            out = ["--out", str(file.parent / f"run{len(given)}")]
            done = CliRunner().invoke(app, ["--model", str(file), *out, *options])
            if done.exception and not isinstance(done.exception, SystemExit):
                return str(done.exception), None, None
            return done.output, *given[-1]

        return run

    def test_different_widths(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 50, 25, 10).state_dict(), tmp_path / "w.ckpt")
        output, found, told = certify(tmp_path / "w.ckpt", "--set", "model.activation=tanh")
        assert "model: 64-50-25-10, tanh" in output
        assert found.activation.name == "tanh" and told is None

    def test_another_depth_than_the_recipe_is_told_truly(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 20, 20, 20, 10).state_dict(), tmp_path / "w.pt")
        _, _, told = certify(tmp_path / "w.pt", "--recipe", "digits")
        assert (told.depth, told.width, told.activation) == (4, 20, "softplus")
        assert checkpoint.load_model(tmp_path / "run0" / "train")[1].model == told

    def test_the_activation_must_be_stated(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 20, 10).state_dict(), tmp_path / "w.pt")
        assert "does not say its activation" in certify(tmp_path / "w.pt")[0]

    def test_layers_key_and_eps(self, tmp_path: Path, certify) -> None:
        model = normed(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10))
        names = {"0": "in", "1": "norm", "3": "out"}
        state = {names[n[0]] + n[1:]: t for n, t in model.state_dict().items()}
        torch.save({"ema": state, "last": state}, tmp_path / "w.pt")
        options = ["--set", "model.activation=tanh", "--key", "ema", "--layers", "in+norm,out"]
        output, found, told = certify(tmp_path / "w.pt", *options, "--batch-norm-eps", "1e-5")
        assert told is None, output
        assert_same(model, found, 64)

    def test_options_without_effect(self, tmp_path: Path, certify) -> None:
        app = typer.Typer()
        app.command()(cli.certify)
        done = CliRunner().invoke(app, ["--out", str(tmp_path), "--key", "ema"])
        assert "go with --model" in str(done.exception)

    def test_half_precision_from_file_to_checked_certificates(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def in_this_process(network, curvature, spec, split, pending):
            found = Certifier(network, steps=5, curvature=curvature)(split.images)
            yield certificates.to_table(found, 0, split.labels.numpy())

        monkeypatch.setattr(stages, "session", nullcontext)
        monkeypatch.setattr(stages.certification, "_run", in_this_process)
        state = {n: t.bfloat16() for n, t in dense(64, 20, 10).state_dict().items()}
        state["0.bias"] = state["0.bias"].float() + 1e-4
        torch.save(state, tmp_path / "w.pt")
        app, out = typer.Typer(), tmp_path / "run"
        app.command()(cli.certify)
        few = ["--set", "data.limit=12", "--set", "model.activation=tanh"]
        done = CliRunner().invoke(app, ["--model", str(tmp_path / "w.pt"), "--out", str(out), *few])
        assert done.exit_code == 0, done.output
        rows, _ = certificates.read(out / "certificates")
        assert (rows["radius"].to_numpy() > 0).any()
        assert verify_run(out).sound
