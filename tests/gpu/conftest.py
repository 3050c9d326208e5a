"""Devices for tests: one that is pretended everywhere, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from tests.gpu.pretended import DEVICE, Pretended


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` skip without one, before Ray is started for them."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where networks and rows are put."""
    if request.param == "cuda":
        yield "cuda"
        return
    # There are no kernels of low precision to turn off.
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: nullcontext())
    with Pretended():
        yield DEVICE
