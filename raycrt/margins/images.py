"""All margins of a batch at its images: values, curvatures and proved closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.rounding import root_upper, squares
from raycrt.margins.prepared import PreparedNetwork

# Images of larger norm are treated as infinite: their squares may overflow.
_LARGEST = 1e100


@dataclass(frozen=True, kw_only=True)
class Margins:
    """The margins of `label` (n,) at the images x (n, features) of a batch.

    `value`, the proved curvature `m` and the proved `radius`, which the solver raises, are float64
    (n, classes). `image_norm` (n,) bounds |x|, and `first` (n, width) is z_1 in float64;
    `first_fast`, a copy of z_1, and the `slopes` above it have the solver's type. Margins that are
    `constant` take the same value everywhere, infinite or not, so no other point says more about
    them. Rows without a `finite_input` are evaluated at zero instead.
    """

    x: Tensor
    label: Tensor
    runner_up: Tensor
    image_norm: Tensor
    first: Tensor
    first_fast: Tensor
    slopes: tuple[Tensor, ...]
    value: Tensor
    m: Tensor
    radius: Tensor
    constant: Tensor
    finite_input: Tensor
    finite_logits: Tensor


def margins_at_images(
    prepared: PreparedNetwork, x: Tensor, m: Tensor, masked: Tensor, constant: Tensor
) -> Margins:
    """The margins at images x (n, features), with the proved closed forms as radii.

    `m` (classes, classes) is the proved curvature. Classes in `masked` (classes,) are never
    predicted, and margins in `constant` (classes, classes) do not depend on the input.
    """
    x = x.double()
    # False where the sum is infinite or NaN.
    square = squares(x)
    finite = square < _LARGEST**2
    if not finite.all():
        x = torch.where(finite[:, None], x, 0.0)
        square = squares(x)
    first = prepared.space.first(x)
    trace = prepared.exact.trace_above(first, prepared.fast.dtype)
    logits = trace.logits.masked_fill(masked.to(x.device), -torch.inf)
    rows = torch.arange(len(x), device=x.device)
    label, runner_up = logits.topk(2, dim=1).indices.unbind(1)
    value = logits[rows, label][:, None] - logits
    m = m.to(x.device)[label]
    image_norm = root_upper(square, x.shape[1])
    norms = prepared.gradient_norms(trace.slopes, label, image_norm)
    measured = label, image_norm[:, None], value
    proof, slack = prepared.proof, prepared.space.slack
    radius = proof.closed_forms(*measured, norms, m, slack)
    constant = constant.to(x.device)[label]
    if constant.any():
        radius = torch.where(constant, proof.constants(*measured, slack), radius)
    radius[rows, label] = torch.inf
    return Margins(
        x=x,
        label=label,
        runner_up=runner_up,
        image_norm=image_norm,
        first=first,
        first_fast=first.to(prepared.fast.dtype),
        slopes=trace.slopes,
        value=value,
        m=m,
        radius=radius,
        constant=constant,
        finite_input=finite,
        finite_logits=torch.isfinite(trace.logits).all(1),
    )
