"""What is taken as a batch of images, and the one sentence for what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import raycrt
from raycrt.certification.certifier import Certifier
from raycrt.errors import InvalidInput
from tests.models import random_network

CALLS = {
    "certify": lambda network, images: raycrt.certify(network, images).radius,
    "attack": lambda network, images: raycrt.attack(network, images).distance,
    "Certifier": lambda network, images: Certifier(network)(images).radius,
}


@pytest.fixture(params=CALLS, ids=str)
def call(request):
    return CALLS[request.param]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 5, generator=torch.Generator().manual_seed(0))


def test_other_containers_of_the_same_numbers(call, images):
    network = random_network(2)
    wanted = call(network, images)
    for same in (
        images.numpy(),
        images.numpy()[::-1][::-1],
        list(images),
        tuple(images.numpy()),
        images.T.contiguous().T,
        images.clone().requires_grad_(),
        images[:, None, :].double(),
    ):
        torch.testing.assert_close(call(network, same), wanted, rtol=1e-6, atol=0)
    frozen = images.numpy().copy()
    frozen.setflags(write=False)
    torch.testing.assert_close(call(network, frozen), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"a batch \(n, \.\.\.\)` .*shape=\(5,\)"),
        (lambda x: x[0].reshape(5, 1), r"one image \(5, 1\): pass image\[None\]"),
        (lambda x: x[:, :4], r"numbers as the network takes.*image=4, network=5"),
        (lambda x: x[:0], "at least one image"),
        (lambda x: x.to(torch.complex64), "are torch.complex64"),
        (lambda x: (255 * x).to(torch.uint8), r"scale that .* \(often pixels / 255\).*uint8"),
        (lambda x: x > 0.5, "are torch.bool"),
        (lambda x: x.to_sparse(), r"images\.to_dense\(\)"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "are torch.quint8"),
        (lambda x: x.to("meta"), "images have values"),
        (lambda x: [x[0], x[1, :4]], r"one shape, type and device, .*shapes \(4,\), \(5,\)"),
        (lambda x: x.tolist(), "a list of tensors of one shape.* but got list"),
        (lambda x: [], "but got list"),
        (lambda x: Image.new("L", (5, 1)), "scale that the model was trained on, but got Image"),
        (lambda x: [Image.new("L", (5, 1))], "but got Image"),
        (lambda x: np.array([["a"]]), "must hold numbers, but holds <U1"),
        (lambda x: None, "but got NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:quantize_per_tensor")
def test_refused_in_one_sentence(call, images, change, message):
    with pytest.raises(InvalidInput, match=message):
        call(random_network(2), change(images))


def test_one_image_without_a_batch_for_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(InvalidInput, match=r"one image \(3, 8, 8\): pass image\[None\]"):
        raycrt.certify(model, torch.rand(3, 8, 8))
    assert raycrt.certify(model, torch.rand(3, 8, 8)[None]).radius.shape == (1,)
