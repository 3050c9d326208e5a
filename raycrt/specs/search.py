"""The section of a spec on searches: their space, their budget and their objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raycrt.specs.record import PROCESSES, ROWS, TURNS, Real, Record, Uri


class Domain(Record):
    """One searched parameter: a range (`low`, `high`, log scale or not) or a list of `choices`."""

    low: float | int | None = Field(None, description="smallest value; integers draw integers")
    high: float | int | None = Field(None, description="largest value")
    log: bool = Field(False, description="whether the range is drawn on a log scale")
    choices: tuple[str | int | float | bool | None, ...] | None = Field(
        None, description="the values, in place of a range"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Domain:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("must have either choices or both low and high")
        if self.choices is None:
            assert self.low is not None and self.high is not None
            if self.low > self.high:
                raise ValueError("must have low <= high")
            if self.log and self.low <= 0:
                raise ValueError("must have low > 0 on a log scale")
        elif not self.choices:
            raise ValueError("must have at least one choice")
        return self

    @property
    def integer(self) -> bool:
        """Whether every value of the range is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SearchSpec(Record):
    """A search with Tune and Optuna: its space, its budget and its objective."""

    space: dict[str, Domain] = Field(default_factory=dict, description="spec path -> domain")
    points: tuple[dict[str, str | int | float | bool | None], ...] = Field(
        (), description="known good values, tried right after the recipe's own"
    )
    algorithm: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"] = Field(
        "tpe", description="how values are drawn: a sampler of Optuna, or all of a grid"
    )
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha", description="the rule that stops weak trials early"
    )
    radius: float | tuple[Real, ...] = Field(
        0.5, description="l2 radius of the objective; of several the mean counts"
    )
    trials: int = Field(
        12, ge=1, le=TURNS, description="number of trials, at least those of a grid"
    )
    concurrent: int | None = Field(
        None,
        ge=1,
        le=PROCESSES,
        description="most trials at a time; none: all that fit; 1 makes a search repeatable",
    )
    workers: int = Field(
        1,
        ge=1,
        le=PROCESSES,
        description="training workers of a trial; with 1 it trains in its own process",
    )
    rungs: tuple[Annotated[int, Field(strict=True)], ...] = Field(
        (), description="epochs at which trials are compared"
    )
    reduction: int = Field(3, ge=2, le=TURNS, description="one of so many trials goes on at a rung")
    rows: int = Field(
        500, ge=1, le=ROWS, description="validation rows certified at the end of a trial"
    )
    rung_rows: int | None = Field(
        None, ge=1, le=ROWS, description="the first of these rows that rungs certify; none: all"
    )
    constraints: dict[Literal["clean", "parameters", "curvature"], Real] = Field(
        default_factory=dict, description="least clean accuracy, most parameters, most curvature"
    )
    pareto: bool = Field(False, description="optimise clean accuracy too")
    finalists: int = Field(
        0, ge=0, le=TURNS, description="best trials evaluated again on all validation rows"
    )
    seeds: int = Field(
        3, ge=1, le=TURNS, description="trainings of each finalist, with different seeds"
    )
    failures: int = Field(
        10, ge=0, le=TURNS, description="failed trials after which the search gives up"
    )
    storage: Uri | None = Field(
        None, description="URL of Optuna's database; else a journal file in the output"
    )
    directory: Uri | None = Field(
        None, description="URI for Tune's logs, s3://... or file:///...; else OUT/search/tune"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_specs(cls, tree: Any) -> Any:
        """Stored specs have an unset key here that is in the section `run` now."""
        if isinstance(tree, dict) and tree.get("mlflow", ...) is None:
            return {key: value for key, value in tree.items() if key != "mlflow"}
        return tree

    @field_validator("radius")
    @classmethod
    def _increasing(cls, radius: float | tuple[float, ...]) -> float | tuple[float, ...]:
        radii = radius if isinstance(radius, tuple) else (radius,)
        if not radii or radii[0] <= 0 or list(radii) != sorted(set(radii)):
            raise ValueError("must be a positive number or a strictly increasing list of them")
        return radius

    @field_validator("rungs")
    @classmethod
    def _later_and_later(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if list(rungs) != sorted(set(rungs)) or any(rung < 1 for rung in rungs):
            raise ValueError("must be positive and strictly increasing")
        return rungs

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of the objective, one or more."""
        return self.radius if isinstance(self.radius, tuple) else (self.radius,)

    @model_validator(mode="after")
    def _rungs_are_cheaper(self) -> SearchSpec:
        if self.rung_rows is not None and self.rung_rows > self.rows:
            raise ValueError("rung_rows must not exceed rows, of which it is the first part")
        return self

    @model_validator(mode="after")
    def _reduction_has_effect(self) -> SearchSpec:
        if self.reduction != 3 and self.scheduler != "asha":
            raise ValueError("reduction must be left at 3 unless scheduler is asha")
        return self

    @model_validator(mode="after")
    def _several_objectives(self) -> SearchSpec:
        if self.pareto and self.algorithm == "cmaes":
            raise ValueError("algorithm cmaes has one objective; pareto needs another algorithm")
        return self
