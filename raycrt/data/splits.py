"""Splits of a data set: rows for training, validation and test, given or drawn by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raycrt.data.permutation import Permutations
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec

NAMES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Rows as `images` float32 (n, features) or (n, channels, height, width) and `labels` int64
    (n,), both in memory of their own; `keys` (n,) are the source's names of the rows, if any."""

    images: np.ndarray
    labels: np.ndarray
    keys: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> Arrays:
        keys = None if self.keys is None else self.keys[rows]
        return Arrays(images=self.images[rows], labels=self.labels[rows], keys=keys)

    def with_rows(self, others: Arrays) -> Arrays:
        """These rows, then the `others`, of the same source."""
        keyed = self.keys is not None and others.keys is not None
        return Arrays(
            images=np.concatenate([self.images, others.images]),
            labels=np.concatenate([self.labels, others.labels]),
            keys=np.concatenate([self.keys, others.keys]) if keyed else None,
        )


@dataclass(frozen=True, kw_only=True)
class ArraySplits:
    """Training rows, validation rows held out of the training set, and rows for the final test.

    The first two are empty for a data set that is a test split alone.
    """

    train: Arrays
    validation: Arrays
    test: Arrays

    @property
    def fit(self) -> Arrays:
        """Training and validation rows together."""
        return self.train.with_rows(self.validation)


def divided(given: Mapping[str, Arrays], spec: DataSpec, names: tuple[str, ...]) -> ArraySplits:
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
        return ArraySplits(train=nothing, validation=nothing, test=test)
    counts = np.bincount(parts["train"].labels, minlength=len(names))
    if not counts.all():
        lacking = names[int((counts == 0).argmax())]
        raise InvalidInput(
            f"each class must have rows in the train split, but class {lacking!r} has none"
        )
    orders = Permutations(spec.split_seed)
    for name, share in (("test", spec.test), ("validation", spec.validation)):
        if name not in parts:
            chosen = _stratified(parts["train"].labels, share, orders, f"data.{name}", names)
            parts[name] = parts["train"].take(chosen)
            parts["train"] = parts["train"].take(~chosen)
    # Trials and a training's progress are measured on the first validation rows.
    parts["validation"] = parts["validation"].take(mixed(parts["validation"].labels))
    return ArraySplits(**{name: limited(parts[name], spec.limit) for name in NAMES})


def limited(split: Arrays, limit: int | None) -> Arrays:
    """At most `limit` rows in their order: of each class the first ones, in proportion to its
    share."""
    if limit is None or len(split) <= limit:
        return split
    return split.take(np.sort(mixed(split.labels)[:limit]))


def mixed(labels: np.ndarray) -> np.ndarray:
    """An order of rows in which every beginning has the classes in their proportions."""
    share = np.empty(len(labels), np.float64)
    for label in np.unique(labels):
        own = labels == label
        number = int(own.sum())
        share[own] = (np.arange(number, dtype=np.float64) + 0.5) / number
    return share.argsort(stable=True)


def _stratified(
    labels: np.ndarray, share: float, orders: Permutations, key: str, names: tuple[str, ...]
) -> np.ndarray:
    """Mask (n,) of `share` of the rows of each class."""
    chosen = np.zeros(len(labels), bool)
    for label, name in enumerate(names):
        rows = np.flatnonzero(labels == label)
        number = round(share * len(rows))
        if not 0 < number < len(rows):
            raise InvalidInput(
                f"{key} must leave rows of each class on both sides, but {share:g} of the "
                f"{len(rows)} rows of class {name!r} is {number}"
            )
        chosen[rows[orders.draw(len(rows))[:number]]] = True
    return chosen
