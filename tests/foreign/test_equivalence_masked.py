"""What hides a difference from a comparison of outputs, and is refused all the same."""

import pytest
import torch
from torch import nn

import raycrt
from raycrt.errors import InvalidInput


class _Quantised(nn.Module):
    """Rounds its inputs to whole numbers by a cast that a reader may take for nothing."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = (x * 8).to(self.kind).to(self.first.weight.dtype) / 8
        return self.last(torch.tanh(self.first(x)))


class _Discarded(nn.Module):
    """An activation that works in place, and whose result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.SiLU(inplace=True), nn.Linear(8, 4)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        self.act(hidden)
        return self.last(hidden)


class _Offset(nn.Module):
    """Differs from its layers where its input is a tensor and not a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x):
        logits = self.last(torch.tanh(self.first(x)))
        if isinstance(x, torch.Tensor):
            logits = logits * torch.tensor([1.0, 1.1, 1.0, 1.0])
        return logits


@pytest.mark.parametrize("bias", [None, -1e9, -1e30])
@pytest.mark.parametrize(
    "make",
    [lambda: _Quantised(torch.uint8), lambda: _Quantised(torch.int32), _Discarded, _Offset],
)
def test_a_masked_class_hides_no_difference_of_the_others(make, bias):
    torch.manual_seed(0)
    model = make()
    if bias is not None:
        with torch.no_grad():
            model.last.bias[3] = bias
    with pytest.raises(InvalidInput):
        raycrt.certify(model, torch.rand(6, 5))


def test_an_index_that_is_a_tensor_is_refused_in_a_sentence():
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x[:, torch.tensor([4, 3, 2, 1, 0])])))

    with pytest.raises(InvalidInput, match="all of one output"):
        raycrt.certify(Permuted(), torch.rand(6, 5))
