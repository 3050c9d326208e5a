"""Data sets of Hugging Face: saved by save_to_disk, or `huggingface:NAME` in the local cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from raycrt.data.sources.columns import Columns, label_among
from raycrt.data.sources.source import SPLITS, Indexed, Rows, Source, by_split, files_with, register
from raycrt.errors import InvalidInput
from raycrt.system.places.storage import Place

_FILES = ("dataset_dict.json", "state.json")


@register("huggingface", uses=("path", "input", "label", "key", "resize", "download"))
class HuggingFace(Source):
    """A Dataset or DatasetDict of the package `datasets`, its columns used as those of a table.

    NAME is fetched only with `data.download`.
    """

    named = True

    @classmethod
    def recognises(cls, path: Place) -> bool:
        return bool({file.name for file in files_with(path, (".json",))} & set(_FILES))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        found = self._parts()
        return {split: partial(self._rows, split, part) for split, part in found.items()}

    def indexed(self, split: str) -> Indexed:
        return Indexed(
            number=len(self._parts()[split]),
            between=partial(self._between, split),
            labels=partial(self._labels, split),
        )

    def _between(self, split: str, first: int, last: int, step: int) -> Iterator[Rows]:
        whole = self._parts()[split]
        for start in range(first, last, step):
            yield self._rows(split, whole.select(range(start, min(start + step, last))), start)

    def _labels(self, split: str) -> Iterator[list[Any]]:
        whole = self._parts()[split]
        for start in range(0, len(whole), self.at_a_time):
            some = whole.select(range(start, min(start + self.at_a_time, len(whole))))
            yield self._columns(split, some, start).labels()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens it itself.
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    def _parts(self) -> dict[str, Any]:
        """The data set of each split."""
        opened = self._opened
        if not isinstance(opened, dict):
            return {"train": opened}
        named = {name: part for name, part in opened.items() if name.lower() in SPLITS}
        return by_split(named, self._where)

    def class_names(self) -> Sequence[str] | None:
        opened = self._opened
        first = next(iter(opened.values())) if isinstance(opened, dict) else opened
        named = {
            column: feature.names
            for column, feature in first.features.items()
            if hasattr(feature, "names") and self.options.label in (None, column)
        }
        return next(iter(named.values())) if len(named) == 1 else None

    def label(self) -> str:
        first = next(iter(self._parts().values()))
        return label_among(first.column_names, self.options.label, self._where)

    def features(self) -> tuple[str, ...]:
        split, part = next(iter(self._parts().items()))
        return self._columns(split, part.select([0]), 0).features

    @property
    def _where(self) -> str:
        return self.argument or str(self.local_path)

    @cached_property
    def _opened(self) -> Any:
        if importlib.util.find_spec("datasets") is None:
            raise InvalidInput(
                "data.source=huggingface needs Hugging Face's datasets: pip install "
                "'raycrt[huggingface]'"
            )
        import datasets

        if self.argument and self.options.path is not None:
            raise InvalidInput("data.path must be left out where huggingface:NAME names the data")
        try:
            with nullcontext() if self.options.download else _offline(datasets.config):
                if self.argument:
                    return datasets.load_dataset(self.argument)
                return datasets.load_from_disk(str(self.local_path))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            said = " ".join(str(error).split())
            raise InvalidInput(
                f"{self._where} must be a whole data set of Hugging Face: {said:.200}"
            ) from None

    def _rows(self, split: str, part: Any, first: int = 0) -> Rows:
        return self._columns(split, part, first).rows()

    def _columns(self, split: str, part: Any, first: int) -> Columns:
        where = f"{split!r} of {self._where}"
        table = part.with_format("arrow")[:]
        for index, field in enumerate(table.schema):
            if (
                isinstance(field.type, pa.ExtensionType)
                and "datasets" in type(field.type).__module__
            ):
                plain = table.column(index).cast(field.type.storage_type)
                table = table.set_column(index, field.name, plain)
        return Columns(table, self.options, where, lambda row: f"row {first + row} of {where}")


@contextmanager
def _offline(config: Any) -> Iterator[None]:
    """Within it `datasets`, whose `config` this is, reads its cache and fetches nothing."""
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
