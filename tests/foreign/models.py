"""Models that others might hand over, and what a network made of one is compared by."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from raycrt.networks.network import Network


def dense(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 3))


def convolutional() -> nn.Sequential:
    body = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(2, 4, 3, padding="same"),
            norm=nn.BatchNorm2d(4),
            act=nn.Softplus(beta=5),
            pool=nn.AvgPool2d(3, stride=2, padding=1),
            grouped=nn.Conv2d(4, 6, 3, stride=2, dilation=1, padding=(1, 0), groups=2, bias=False),
        )
    )
    head = nn.Sequential(
        nn.Softplus(beta=5),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Identity(),
        nn.Linear(12, 3),
    )
    norm = body.norm
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.2
    nn.init.normal_(norm.weight)
    return nn.Sequential(body, head)


def assert_same(model: nn.Module, converted: Network, shape: tuple[int, ...]) -> None:
    x = torch.rand(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            converted.double()(x), model.double().eval()(x), rtol=0, atol=1e-12
        )
