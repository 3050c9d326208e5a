"""Splits of a data set: rows for training, validation and test, given or drawn by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec

NAMES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """`images` float32 (n, features) or (n, channels, height, width), `labels` int64 (n,).

    Pixels of files are in [0, 1]; numbers that a source has as floats are left as they are.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> Split:
        return Split(images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training rows, validation rows held out of the training set, and rows for the final test.

    The first two are empty for a data set that is a test split alone.
    """

    train: Split
    validation: Split
    test: Split

    @property
    def fit(self) -> Split:
        """Training and validation rows together, on which the chosen configuration is trained."""
        return Split(
            images=torch.cat([self.train.images, self.validation.images]),
            labels=torch.cat([self.train.labels, self.validation.labels]),
        )


def divided(given: Mapping[str, Split], spec: DataSpec, names: tuple[str, ...]) -> Dataset:
    """The splits `given` as they are, and the missing ones taken out of the training rows, if there
    are some.

    Of each of the classes `names` the share `spec.test`, then `spec.validation` of the rest, is
    drawn from `spec.split_seed`. Rows keep their order, but those of validation are `mixed`. Raises
    `InvalidInput` where the training rows lack a class, or a share has none of a class.
    """
    parts = dict(given)
    if set(parts) == {"test"}:
        nothing = parts["test"].take(slice(0))
        test = limited(parts["test"], spec.limit)
        return Dataset(train=nothing, validation=nothing, test=test)
    counts = torch.bincount(parts["train"].labels, minlength=len(names))
    if not bool(counts.all()):
        lacking = names[int((counts == 0).nonzero()[0, 0])]
        raise InvalidInput(
            f"each class must have rows in the train split, but class {lacking!r} has none"
        )
    generator = torch.Generator().manual_seed(spec.split_seed)
    for name, share in (("test", spec.test), ("validation", spec.validation)):
        if name not in parts:
            chosen = _stratified(parts["train"].labels, share, generator, f"data.{name}", names)
            parts[name] = parts["train"].take(chosen)
            parts["train"] = parts["train"].take(~chosen)
    # Trials and a training's progress are measured on the first validation rows.
    parts["validation"] = parts["validation"].take(mixed(parts["validation"].labels))
    return Dataset(**{name: limited(parts[name], spec.limit) for name in NAMES})


def limited(split: Split, limit: int | None) -> Split:
    """At most `limit` rows in their order: of each class the first ones, in proportion to its
    share."""
    if limit is None or len(split) <= limit:
        return split
    return split.take(mixed(split.labels)[:limit].sort().values)


def mixed(labels: Tensor) -> Tensor:
    """An order of rows in which every beginning has the classes in their proportions."""
    share = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        own = labels == label
        number = int(own.sum())
        share[own] = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return share.argsort(stable=True)


def _stratified(
    labels: Tensor, share: float, generator: torch.Generator, key: str, names: tuple[str, ...]
) -> Tensor:
    """Mask (n,) of `share` of the rows of each class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(names):
        rows = (labels == label).nonzero().flatten()
        number = round(share * len(rows))
        if not 0 < number < len(rows):
            raise InvalidInput(
                f"{key} must leave rows of each class on both sides, but {share:g} of the "
                f"{len(rows)} rows of class {name!r} is {number}"
            )
        chosen[rows[torch.randperm(len(rows), generator=generator)[:number]]] = True
    return chosen
