"""The classification sets of torchvision.datasets: `torchvision:SVHN`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raycrt.data.sources import items
from raycrt.data.sources.source import SPLITS, Rows, Source, by_split, files_directory, register
from raycrt.errors import InvalidInput, nearest


@register("torchvision", uses=("directory", "download", "resize"))
class Torchvision(Source):
    """A class of torchvision.datasets with `train` or `split` among its arguments, or neither: its
    training and test rows, and the validation rows that it gives."""

    named = True
    _names: Sequence[str] | None = None

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        arguments = inspect.signature(self._class()).parameters
        if "train" in arguments:
            return {
                split: partial(self._rows, split, {"train": split == "train"})
                for split in ("train", "test")
            }
        if "split" in arguments:
            asked = [name for name in SPLITS if self._has(name)]
            named = {name: partial(self._rows, name, {"split": name}) for name in asked}
            if "train" not in asked and self._has("trainval"):
                named["train"] = partial(self._rows, "trainval", {"split": "trainval"})
            return by_split(named, f"torchvision:{self.argument}")
        return {"train": partial(self._rows, "train", {})}

    def class_names(self) -> Sequence[str] | None:
        return self._names

    def _class(self) -> Any:
        from torchvision import datasets

        known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
        if self.argument not in known:
            raise InvalidInput(
                "data.source must be torchvision:NAME with a class of torchvision.datasets"
                f"{nearest(self.argument, known)}, but got {self.argument!r}"
            )
        return getattr(datasets, self.argument)

    def _root(self) -> Path:
        return files_directory(self.options.directory, self.argument)

    def _has(self, split: str) -> bool:
        """Whether the class has a split of this name; it is asked before it looks at files."""
        try:
            self._open({"split": split}, download=False)
        except ValueError:
            return False
        except (RuntimeError, OSError, TypeError, ImportError):
            pass
        return True

    def _open(self, choice: dict[str, Any], download: bool) -> Any:
        wanted = {"root": str(self._root()), "download": download, **choice}
        arguments = inspect.signature(self._class()).parameters
        return self._class()(**{key: wanted[key] for key in wanted if key in arguments})

    def _rows(self, split: str, choice: dict[str, Any]) -> Rows:
        where = f"{self.argument}, {split}, in {self._root()}"
        try:
            opened = self._open(choice, self.options.download)
        except (RuntimeError, OSError, EOFError, TypeError, ValueError, ImportError) as error:
            said = " ".join(str(error).split())
            raise InvalidInput(f"{where} must be complete: {said:.300}") from None
        self._names = getattr(opened, "classes", None)
        return items.rows(opened, where, self.options.resize, self.options.shape)
