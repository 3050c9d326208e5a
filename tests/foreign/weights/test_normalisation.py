"""Batch normalisation and normalisers of the inputs in bare weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycrt import Certifier
from raycrt.errors import InvalidInput
from raycrt.foreign import description, files
from raycrt.foreign.weights.network import from_state_dict
from raycrt.specs import ModelSpec
from tests.foreign.models import assert_same
from tests.foreign.weights.models import SPEC, dense, normed


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
        found = files.from_state_dict(model.state_dict(), SPEC, batch_norm_eps=1e-5)
        assert_same(model, found, (6,))
        told = description.described(Path("w.pt"), found, SPEC, 3, (6,))
        assert told is not None and "batch_normalization" in [each.kind for each in told.layers]
        assert (Certifier(found, steps=2)(torch.rand(3, 6)).radius > 0).any()

    def test_convolutional(self) -> None:
        model = normed(
            *(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        )
        spec, state = ModelSpec(channels=(1,), depth=1, activation="tanh"), model.state_dict()
        found = files.from_state_dict(state, spec, (2, 8, 8), batch_norm_eps=1e-5)
        assert_same(model, found, (2, 8, 8))

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
            files.from_state_dict(normed(*layers).state_dict(), SPEC, batch_norm_eps=1e-5)

    def test_names_tell_no_place(self) -> None:
        first, norm, last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        normed(norm)
        for stated, order in (
            (["fc1+bn1", "fc2"], (first, norm, nn.Tanh(), last)),
            (["fc1", "bn1+fc2"], (first, nn.Tanh(), norm, last)),
        ):
            state = nn.ModuleDict({"fc1": first, "bn1": norm, "fc2": last}).float().state_dict()
            with pytest.raises(InvalidInput, match=r"activation stands|more than one order"):
                files.from_state_dict(state, SPEC, batch_norm_eps=1e-5)
            found = files.from_state_dict(state, SPEC, layers=stated, batch_norm_eps=1e-5)
            assert_same(nn.Sequential(*order), found, (6,))

    def test_eps_is_asked_for(self) -> None:
        model = normed(nn.Linear(6, 8), nn.BatchNorm1d(8, eps=0.1), nn.Tanh(), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match=r"batch_norm_eps must be given.*1.running_mean"):
            files.from_state_dict(model.state_dict(), SPEC)
        found = files.from_state_dict(model.state_dict(), SPEC, batch_norm_eps=0.1)
        assert_same(model, found, (6,))
        with pytest.raises(InvalidInput, match="must be left out unless"):
            files.from_state_dict(dense(6, 8, 3).state_dict(), SPEC, batch_norm_eps=0.1)


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
        found = files.from_state_dict(model.state_dict(), SPEC, (2, 4, 4))
        assert_same(model, found, (2, 4, 4))
        first = found.layers[0].links[0]  # type: ignore[attr-defined]
        expected = model.std.double().expand(1, 2, 4, 4).flatten()
        assert torch.equal(first.variance.sqrt(), expected)
        told = description.described(Path("w.pt"), found, SPEC, 3, (2, 4, 4))
        assert told is not None
        assert (told.layers[0].per, told.layers[0].eps) == ("feature", 0.0)  # type: ignore[union-attr]

    def test_channels_and_columns_are_not_confused(self) -> None:
        state = {"mean": torch.rand(4), "std": torch.ones(4), **dense(64, 8, 3).state_dict()}
        with pytest.raises(InvalidInput, match=r"mean must be for .* but has shape \(4,\)"):
            files.from_state_dict(state, SPEC, (4, 4, 4))

    def test_before_convolutions(self) -> None:
        body = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
        model = Normalised(torch.rand(2, 1, 1), torch.rand(2, 1, 1) + 0.1, body)
        spec = ModelSpec(channels=(1,), depth=1, activation="tanh")
        found = files.from_state_dict(model.state_dict(), spec, (2, 8, 8))
        assert_same(model, found, (2, 8, 8))

    def test_one_number_for_a_channel(self) -> None:
        """People write `mean[None, :, None, None]`."""
        state = {"mean": torch.rand(3), "std": torch.rand(3) + 0.1, **dense(75, 8, 3).state_dict()}
        found = files.from_state_dict(state, SPEC, (3, 5, 5))
        links = found.layers[0].links  # type: ignore[attr-defined]
        assert torch.equal(links[0].mean, state["mean"].double().repeat_interleave(25))

    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            (torch.rand(7), torch.rand(7), "mean must be for all inputs of shape"),
            (torch.rand(4), torch.rand(4), "mean must be for all inputs of shape"),
            (torch.rand(4, 4, 2), torch.rand(1), "mean must be for all inputs of shape"),
            (0.5, -0.5, "std must consist of positive float32 numbers"),
            (0.5, torch.tensor(0.1, dtype=torch.float64), "std must consist of positive float32"),
        ],
    )
    def test_refused(self, mean: Any, std: Any, message: str) -> None:
        model = Normalised(mean, std, dense(32, 8, 3))
        with pytest.raises(InvalidInput, match=message):
            files.from_state_dict(model.state_dict(), SPEC, (2, 4, 4))
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            files.from_state_dict(model.state_dict(), SPEC)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_normaliser_that_is_not_stored_first_is_refused_unless_the_order_is_stated(ordered):
    """It may be anywhere, and be the inverse of what was done to the labels."""
    state = {
        "fc1.weight": torch.randn(6, 4),
        "fc1.bias": torch.randn(6),
        "fc2.weight": torch.randn(3, 6),
        "fc2.bias": torch.randn(3),
        "norm.mean": torch.randn(4),
        "norm.std": torch.full((4,), 2.0),
    }
    spec = ModelSpec(depth=2, activation="tanh")
    with pytest.raises(InvalidInput, match="must normalise the inputs"):
        from_state_dict(state, spec, (4,), ordered=ordered)
    from_state_dict(state, spec, (4,), ordered=ordered, layers=["fc1", "fc2"])
