"""Muon in float32 takes the steps of torch's Muon, as far as bfloat16 lets them be compared."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from raycrt.specs import TrainSpec
from raycrt.training.optimizers import optimizer
from raycrt.training.optimizers.muon import Float32Muon
from tests.models import random_network


def _steps(kind, weight: torch.Tensor, gradients, **options):
    moved = nn.Parameter(weight.clone())
    optimizer = kind([moved], lr=0.1, **options)
    for gradient in gradients:
        moved.grad = gradient.clone()
        optimizer.step()
    return moved.detach(), optimizer


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)], ids=str)
@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"nesterov": False}], ids=str)
def test_steps_are_those_of_torch(shape, options):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours, _ = _steps(Float32Muon, weight, gradients, **options)
    theirs, _ = _steps(torch.optim.Muon, weight, gradients, **options)
    assert (ours - theirs).norm() <= 0.02 * (theirs - weight).norm()
    assert not torch.equal(ours, weight)


def test_a_state_of_torch_is_resumed():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 40, generator=generator)
    gradients = [torch.randn(6, 40, generator=generator) for _ in range(2)]
    whole, _ = _steps(Float32Muon, weight, gradients)
    half, first = _steps(torch.optim.Muon, weight, gradients[:1])
    moved = nn.Parameter(half)
    second = Float32Muon([moved], lr=0.1)
    second.load_state_dict(deepcopy(first.state_dict()))
    moved.grad = gradients[1]
    second.step()
    assert (moved.detach() - whole).norm() <= 0.02 * (whole - weight).norm()


@pytest.mark.parametrize(("native", "kind"), [(True, torch.optim.Muon), (False, Float32Muon)])
def test_the_processor_decides(monkeypatch, native, kind):
    monkeypatch.setattr("raycrt.training.optimizers.optimizer.has_bfloat16", lambda device: native)
    network = random_network(3)
    muon, _ = optimizer.Muon.made(network, TrainSpec())
    assert type(muon) is kind
