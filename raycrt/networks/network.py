"""The network: affine maps with a smooth activation between them, and its gradients by recursion.

`z_1 = W_1 x + b_1`, `a_I = s(z_I)`, `z_{I+1} = W_{I+1} a_I + b_{I+1}`; the logits are `z_L`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from raycrt.activations import Activation
from raycrt.errors import require
from raycrt.networks.architecture import Architecture
from raycrt.networks.layers.affine import AffineMap, Chain, links_of
from raycrt.networks.layers.diagonal import Normalization
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec

_SMALLEST, _LARGEST = 1e-100, 1e100
# Differences of rows of the last matrix are stored if they are at most this many numbers.
_DIFFERENCES = 2**22


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A forward pass: `logits` (batch, classes), `slopes` s'(z_I) of the hidden layers."""

    logits: Tensor
    slopes: tuple[Tensor, ...]


class Network(nn.Module):
    """Classifier from images (batch, ...) to logits (batch, classes).

    `maps` are its affine maps. Between neighbours stands `activation` or, given as a sequence and
    kept as `between`, a `Nonlinearity` of their own, or nothing (None). Maps with nothing between
    them are one of the `layers`, of which there are at least two; `nonlinearities[k]` follows
    `layers[k]`.
    """

    def __init__(
        self, maps: Sequence[AffineMap], activation: Activation | Sequence[Nonlinearity | None]
    ) -> None:
        super().__init__()
        for before, after in pairwise(maps):
            require(
                before.out_features == after.in_features,
                "out_features of a layer == in_features of the next",
                out_features=before.out_features,
                in_features=after.in_features,
            )
        require(maps[-1].out_features >= 2, "classes >= 2", classes=maps[-1].out_features)
        if isinstance(activation, Activation):
            sizes = [layer.out_features for layer in maps[:-1]]
            activation = [Nonlinearity(activation=activation, active=n, width=n) for n in sizes]
        widths = [each.width if each else None for each in activation]
        sizes = [layer.out_features for layer in maps[:-1]]
        require(
            len(widths) == len(sizes)
            and all(width in (None, size) for width, size in zip(widths, sizes, strict=True)),
            "a nonlinearity for each hidden layer, of its width",
            widths=widths,
            layers=sizes,
        )
        self.maps = nn.ModuleList(maps)
        self.between = tuple(activation)
        self.nonlinearities = tuple(each for each in self.between if each)
        ends = [k + 1 for k, each in enumerate(activation) if each]
        self._joined = tuple(slice(*pair) for pair in pairwise([0, *ends, len(maps)]))
        require(self.depth >= 2, "depth >= 2", depth=self.depth)

    @property
    def activation(self) -> Activation:
        """The activation of every hidden feature; `InvalidInput` where they differ."""
        first = self.nonlinearities[0].activation
        require(
            all(each.activation == first and not each.passes for each in self.nonlinearities),
            "one activation acts on every hidden feature",
            activations=[each.activation.name for each in self.nonlinearities],
        )
        return first

    @property
    def layers(self) -> list[AffineMap]:
        """The affine maps W_1 ... W_L; one that is made of several maps is their `Chain`."""
        maps: list[AffineMap] = list(self.maps)  # type: ignore[arg-type]
        parts = (maps[part] for part in self._joined)
        return [part[0] if len(part) == 1 else Chain(links_of(part)) for part in parts]

    @property
    def depth(self) -> int:
        return len(self._joined)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the network computes."""
        return self._last.offset().dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._last.offset().device

    @property
    def _last(self) -> AffineMap:
        return self.maps[-1]  # type: ignore[return-value]

    @property
    def features(self) -> int:
        """Length of a flattened input."""
        return self.layers[0].in_features

    @property
    def classes(self) -> int:
        return self.layers[-1].out_features

    def forward(self, images: Tensor) -> Tensor:
        z = self.layers[0](images.flatten(1))
        for layer, nonlinearity in zip(self.layers[1:], self.nonlinearities, strict=True):
            z = layer(nonlinearity.value(z))
        return z

    def masked(self) -> Tensor:
        """Mask (classes,) of classes with a bias of -inf, whose logit is -inf at every input."""
        return torch.isneginf(self.layers[-1].offset().detach())

    def unmasked(self) -> Network:
        """The network with a bias of 0 in place of -inf: margins between other classes are the
        same. The network itself if no class is masked."""
        if not self.masked().any():
            return self
        network = copy.deepcopy(self)
        last = network._last
        while isinstance(last, Chain):
            last = last.links[-1]
        with torch.no_grad():
            bias = dict(last.named_parameters()).get("bias", last.offset())
            bias.masked_fill_(torch.isneginf(bias), 0.0)
        return network

    def bounded(self) -> bool:
        """Whether weights, and matrices made of several tensors, are finite, each tensor's largest
        entry is 0 or in 1e-100 .. 1e100, and no variance is negative.

        Some, but not all, classes may have a bias of -inf. Outside this range squares and products
        may underflow or overflow float64, and no bound is stated.
        """
        masked = self.masked()
        if masked.any():
            return not masked.all() and self.unmasked()._bounded()
        return self._bounded()

    def _bounded(self) -> bool:
        for tensor in self.state_dict().values():
            largest = float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0
            if not (largest == 0 or _SMALLEST < largest < _LARGEST):
                return False
        # A sum of a negative variance and eps may cancel.
        normalizations = (each for each in self.modules() if isinstance(each, Normalization))
        if any(bool((each.variance < 0).any()) for each in normalizations):
            return False
        # Maps that are made of several tensors.
        return all(
            bool(torch.isfinite(layer.offset()).all() and torch.isfinite(layer.matrix()).all())
            for layer in self.in_float64().layers
            if layer.dense
        )

    def in_float64(self) -> Network:
        """The same network in float64, in evaluation mode and without gradients."""
        return self.copied(torch.float64)

    def copied(self, dtype: torch.dtype) -> Network:
        """A copy with weights of `dtype`, in evaluation mode and without gradients."""
        return copy.deepcopy(self).to(dtype).eval().requires_grad_(False)

    def trace(self, x: Tensor) -> Trace:
        """Logits and activation slopes at flat inputs x (batch, features)."""
        return self.trace_above(self.layers[0](x))

    def trace_above(self, z: Tensor, slopes_in: torch.dtype | None = None) -> Trace:
        """The same from z_1 (batch, width), the output of the first layer; slopes have the type
        `slopes_in` if that is given."""
        hidden, slopes = self.hidden(z, slopes_in)
        return Trace(logits=self.layers[-1](hidden), slopes=slopes)

    def hidden(
        self, z: Tensor, slopes_in: torch.dtype | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Input of the last layer, from z_1 (batch, width), and the slopes of the hidden layers, of
        the type `slopes_in` if that is given."""
        z, slopes = self._up_to_last(z, slopes_in)
        return self.nonlinearities[-1].value(z), slopes

    def slopes(self, x: Tensor) -> tuple[Tensor, ...]:
        """The slopes of `trace` without its logits: all that a margin's gradient needs."""
        return self._up_to_last(self.layers[0](x))[1]

    def _up_to_last(
        self, z: Tensor, slopes_in: torch.dtype | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last z before the logits, from z_1, and the slopes of the hidden layers."""
        dtype = slopes_in or z.dtype
        slopes = [self.nonlinearities[0].slope(z.to(dtype))]
        for layer, (before, after) in zip(
            self.layers[1:-1], pairwise(self.nonlinearities), strict=True
        ):
            z = layer(before.value(z))
            slopes.append(after.slope(z.to(dtype)))
        return z, tuple(slopes)

    def pull_back(self, slopes: Sequence[Tensor], cotangent: Tensor) -> Tensor:
        """Gradient of `<cotangent, logits>` with respect to the input, from a trace's slopes.

        `cotangent` is (batch, classes) or, for several at once, (batch, k, classes); the result
        has `features` in place of `classes`.
        """
        above = self.layers[-1].transpose(cotangent)
        return self.layers[0].transpose(self.pull_back_hidden(slopes, above))

    def pull_back_hidden(
        self, slopes: Sequence[Tensor], cotangent: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Gradient of `<cotangent, hidden>` with respect to z_1; the last axis of both is `width`.

        It is written to `out` if given.
        """
        for k in range(self.depth - 2, -1, -1):
            slope = slopes[k] if cotangent.dim() == slopes[k].dim() else slopes[k][:, None]
            cotangent = torch.mul(cotangent, slope, out=out if k == 0 else None)
            if k > 0:
                cotangent = self.layers[k].transpose(cotangent)
        return cotangent

    def readout(self) -> Readout:
        """The last layer as its rows."""
        return Readout.of(self.layers[-1].matrix(), self.layers[-1].offset())


@dataclass(frozen=True, kw_only=True)
class Readout:
    """The last layer, `rows` (classes, width) and `offset` (classes,), in which margins are linear.

    `apart` (classes * classes, width) holds the differences of all pairs of rows, if they are few.
    """

    rows: Tensor
    offset: Tensor
    apart: Tensor | None

    @staticmethod
    def of(rows: Tensor, offset: Tensor) -> Readout:
        few = len(rows) * rows.numel() <= _DIFFERENCES
        apart = (rows[:, None] - rows).flatten(0, 1) if few else None
        return Readout(rows=rows, offset=offset, apart=apart)

    def to(self, dtype: torch.dtype) -> Readout:
        """The readout with its numbers rounded to `dtype`."""
        apart = None if self.apart is None else self.apart.to(dtype)
        return Readout(rows=self.rows.to(dtype), offset=self.offset.to(dtype), apart=apart)

    def margin(self, label: Tensor, target: Tensor) -> Tensor:
        """Cotangents (n, width) in the last hidden layer of the margins z_label - z_target."""
        if self.apart is not None:
            return self.apart.index_select(0, label * len(self.rows) + target)
        return self.rows.index_select(0, label).sub_(self.rows.index_select(0, target))

    def margin_offset(self, label: Tensor, target: Tensor) -> Tensor:
        """The margins (n,) where the last hidden layer is 0."""
        return self.offset[label] - self.offset[target]

    def distances(self) -> Tensor:
        """The distances (classes, classes) between pairs of rows."""
        return torch.cdist(self.rows, self.rows, compute_mode="donot_use_mm_for_euclid_dist")


def build(spec: ModelSpec, shape: Sequence[int], classes: int) -> Network:
    """A freshly initialised network of inputs of `shape`; draws from torch's global generator.

    Convolutions need a shape (channels, height, width).
    """
    built = Architecture(spec, shape, classes)
    return Network(built.maps, built.nonlinearities)


def margin_direction(label: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Cotangent e_label - e_target of the margin z_label - z_target.

    `label` and `target` broadcast against each other; `like` (batch, classes) gives the dtype.
    """
    eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return eye[label] - eye[target]
