"""The section `data` of a spec: which data set, where it is, how it is divided."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycrt.specs.record import NEURONS, ROWS, SEED, Options, Real, Record
from raycrt.system.places.storage import is_uri, without_client

DataName = Literal["digits", "mnist", "fashion-mnist", "cifar10"]
# The keys that every data set uses, and those that every source uses besides.
ALWAYS = frozenset({"name", "source", "validation", "limit", "normalize", "scale"})
OF_SOURCES = frozenset({"test", "split_seed", "shape", "class_names"})
# The keys that stay as they are when another data set takes the place of one.
_KEPT = frozenset({"name", "source", "limit", "directory", "download"})

Side = Annotated[int, Field(ge=1, le=NEURONS, strict=True)]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


class Statistics(Record):
    """A mean and a standard deviation for each channel of images, or for each feature."""

    mean: tuple[Real, ...] = Field(min_length=1, description="what is subtracted")
    std: tuple[Annotated[float, Field(gt=0, strict=True)], ...] = Field(
        min_length=1, description="what the difference is divided by"
    )

    @model_validator(mode="after")
    def _as_many(self) -> Statistics:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have one number each for every channel or feature")
        return self


# Numbers, or the word for those of the training rows.
_Chosen = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Statistics, Tag("numbers")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "numbers"),
]


class DataSpec(Options):
    """The data set, one of four by its `name` or any other by its `source`, and its splits.

    Every source states which of these keys it uses; `data.check` refuses the others where they are
    set. `shape` and `class_names` are facts about a source: what is read must agree with them if
    they are stated, and `data.described` states them. For a named set they are known.
    """

    section: ClassVar[str] = "data"

    name: DataName | None = Field(
        "digits", description="a named data set; none where source is given"
    )
    source: str | None = Field(
        None,
        description="one of raycrt.data.sources.SOURCES, torchvision:NAME, huggingface:NAME, or "
        "module:function",
    )
    path: str | None = Field(
        None, description="file or directory of a source, from the working directory, or a URI"
    )
    label: str | None = Field(None, description="column or array with the labels")
    input: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns or array with the inputs; one or a list"
    )
    key: str | None = Field(
        None, description="column whose values name the rows; certificates repeat them"
    )
    resize: tuple[Side, Side] | None = Field(
        None, description="height and width to which images are resized"
    )
    directory: Path | None = Field(
        None, description="where the files are, from the working directory; else RAYCRT_DATA"
    )
    download: bool = Field(False, description="fetch the files when they are missing")
    validation: float = Field(
        0.15, gt=0, lt=1, description="share of the training rows held out, unless they are given"
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="share of a source's rows for the test, unless they are given"
    )
    split_seed: int = Field(0, ge=0, le=SEED, description="seed of the choice of these shares")
    limit: int | None = Field(
        None,
        ge=1,
        le=ROWS,
        description="use the first rows of each split only; of a source, those of each class",
    )
    shape: tuple[Side, ...] | None = Field(
        None, description="shape of an input: features, or channels, height, width"
    )
    class_names: tuple[str, ...] | None = Field(
        None, min_length=2, description="names of the classes, in the order of the labels"
    )

    normalize: _Chosen | None = Field(
        None,
        description="mean and std of the model's first layer, (x - mean) / std; auto: those of the "
        "training rows",
    )
    scale: _Chosen | None = Field(
        None, description="the same of the data itself: radii are in units of std"
    )

    @model_validator(mode="before")
    @classmethod
    def _source_takes_the_place_of_name(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("source") is not None:
            return {"name": None, **tree}
        return tree

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_a_list(cls, columns: Any) -> Any:
        return (columns,) if isinstance(columns, str) else columns

    @field_validator("path", mode="before")
    @classmethod
    def _place(cls, path: Any) -> Any:
        """A URI as it is, and a path as an absolute one: workers have another working directory."""
        if not isinstance(path, str | Path):
            return path
        named = without_client(path)
        return named if isinstance(named, str) else str(_absolute(named))

    @field_validator("directory")
    @classmethod
    def _on_a_disk(cls, directory: Path | None) -> Path | None:
        if directory is not None and is_uri(directory):
            raise ValueError("must be a path: this data is read from a disk, not from a URI")
        return None if directory is None else _absolute(directory)

    @field_validator("shape")
    @classmethod
    def _features_or_image(cls, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if shape is not None and len(shape) not in (1, 3):
            raise ValueError("must be (features,) or (channels, height, width)")
        return shape

    @model_validator(mode="after")
    def _one_data_set(self) -> DataSpec:
        if (self.name is None) == (self.source is None):
            raise ValueError("exactly one of data.name and data.source must be set")
        return self

    @property
    def title(self) -> str:
        """The data set in a word or two: its name, or its source with the last part of its path."""
        if self.name is not None:
            return self.name
        if self.path is None or ":" in str(self.source):
            return str(self.source)
        return f"{self.source} {self.path.rpartition('/')[2]}"

    @property
    def units(self) -> str:
        """The units of the inputs, and so of all radii."""
        if self.scale is None:
            return "those of the data"
        each = "channel" if self.shape is None or len(self.shape) == 3 else "feature"
        return f"standard deviations of each {each} (data.scale)"

    def replaced(self, values: dict[str, Any]) -> dict[str, Any]:
        """Defaults for the keys that are about this data set alone, if one of `values` (by key)
        names another data set; else nothing."""
        for key in ("name", "source"):
            if values.get(key) is not None and values[key] != getattr(self, key):
                own = (k for k in type(self).model_fields if k not in _KEPT)
                defaults = {k: type(self).model_fields[k].default for k in own}
                return {**defaults, "name": None, "source": None}
        return {}
