"""Base class of the sections of a spec: frozen, without unknown keys, strict about numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# An element of a list of numbers.
Real = Annotated[float, Field(strict=True)]


def _without_password(uri: str) -> str:
    """Refuse a secret: a spec is stored as it is, beside results and in the data of a job."""
    parts = urlsplit(uri)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise ValueError("must hold no password, which its client takes from the environment")
    return uri


Uri = Annotated[str, AfterValidator(_without_password)]
# Upper limits of counts: iterations of a loop, neurons of a layer, rows, processes. Beyond them
# counters of torch, Ray and Optuna overflow, or no machine has the memory.
TURNS, NEURONS, ROWS, PROCESSES = 10**6, 2**20, 10**9, 10**5
# Training and search multiply a seed by 1,000,003 and add a counter: that stays below 2^63.
SEED = 2**43 - 1


class Record(BaseModel):
    """A frozen record that refuses unknown keys, NaN, infinities, and text for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text and Booleans for numbers: "1_0", "infinity" and True would be converted."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)} & {int, float}
        if kinds and isinstance(value, str | bool):
            raise ValueError(f"must be {'a number' if float in kinds else 'an integer'}")
        return value


class Options(Record):
    """A section of a spec of which what it names, an objective say, `uses` some keys alone."""

    section: ClassVar[str]

    def only(self, keys: frozenset[str]) -> SimpleNamespace:
        """The values of `keys` alone: reading another one is an error."""
        return _Only(self.section, **{key: getattr(self, key) for key in keys})


class _Only(SimpleNamespace):
    def __init__(self, section: str = "", **values: Any) -> None:
        super().__init__(**values)
        self._section = section

    def __getattr__(self, key: str) -> Any:
        section = self.__dict__.get("_section", "")  # Copies ask before there is one.
        raise AttributeError(f"{section}.{key} is read but not in `uses`")
