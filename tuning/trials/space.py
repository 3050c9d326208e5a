"""The search space: one declaration in the recipe, in Tune's form and in Optuna's.

`spec.search.space` maps paths of the spec to domains. A parameter that has no effect under the
others' values (softplus's beta under tanh, gamma without a regulariser) is not drawn at all, so
that the sampler learns nothing from its noise. Objectives, optimizers and activations state which
parameters they use (`raycrt.training.options.effects`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel
from ray import tune
from ray.tune.search import sample
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.variant_generator import generate_variants

from raycrt.errors import InvalidInput, nearest, require
from raycrt.specs import Spec, paths
from raycrt.specs.search import Domain
from raycrt.training.options import effects, rules

Params = dict[str, Any]

# Keys that are held fixed, so that trials are compared fairly.
_FIXED = ("train.epochs", "train.precision")


class Suggests(Protocol):
    """The part of `optuna.trial.Trial` that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def tune_space(spec: Spec) -> dict[str, sample.Domain]:
    """The space in Tune's form: the domain of each searched path; integers stay integers."""
    return {path: _domain(path, spec.search.space[path]) for path in _ordered(spec)}


def optuna_space(spec: Spec) -> dict[str, BaseDistribution]:
    """The space in Optuna's form, as Tune itself converts its own."""
    return OptunaSearch.convert_search_space(tune_space(spec))


def suggest(spec: Spec, trial: Suggests) -> Params:
    """Draw the parameters that have an effect, each from its domain."""
    params: Params = {}
    for path, distribution in optuna_space(spec).items():
        if active(spec, path, params):
            params[path] = _draw(trial, path, distribution)
    return params


def grid(spec: Spec) -> list[Params]:
    """The points of Tune's grid search over choices and ranges of integers, in its order.

    Points that differ only in parameters without effect count as one.
    """
    axes = {path: tune.grid_search(_values(path, d)) for path, d in tune_space(spec).items()}
    points: list[Params] = []
    for _, variant in generate_variants(axes):
        point = _effective(spec, variant)
        if point not in points:
            points.append(point)
    return points


def apply(spec: Spec, params: Mapping[str, Any]) -> Spec:
    """`spec` with `params` set, and every option without effect at its default."""
    return effects.override(spec, params)


def defaults(spec: Spec) -> Params:
    """The recipe's own values of the searched parameters that have an effect."""
    return _effective(spec, {path: spec.value(path) for path in spec.search.space})


def points(spec: Spec) -> list[Params]:
    """The points tried first: the recipe's own values, then `search.points` (completed by them)."""
    own = {path: spec.value(path) for path in spec.search.space}
    found: list[Params] = []
    for given in ({}, *spec.search.points):
        point = _effective(spec, {**own, **given})
        if point not in found:
            found.append(point)
    return found


def active(spec: Spec, path: str, params: Mapping[str, Any]) -> bool:
    """Whether the parameter at `path` has an effect where `params` are set."""
    condition = effects.conditions().get(path)
    if condition is None:
        return True
    return params.get(condition.key, spec.value(condition.key)) in condition.names


def conditional(spec: Spec) -> bool:
    """Whether some searched parameter has an effect only under some values of another."""
    found = effects.conditions()
    return any(path in found and found[path].key in spec.search.space for path in spec.search.space)


def check(spec: Spec) -> None:
    """Raise `InvalidInput` unless the recipe can be trained and certified, rungs come before its
    end, and every domain is valid and contains the recipe's own value."""
    effects.check(spec, {key: names for key in effects.choices() if (names := _names(spec, key))})
    rules.check_training(apply(spec, {}))
    rules.check_certification(spec)
    require(
        all(rung < spec.train.epochs for rung in spec.search.rungs),
        "search.rungs < train.epochs",
        rungs=list(spec.search.rungs),
        epochs=spec.train.epochs,
    )
    require(bool(spec.search.space), "search.space names a parameter", space={})
    known = paths()
    for path, domain in spec.search.space.items():
        if path not in known:
            raise InvalidInput(f"search.space.{path} is not a key of a spec{nearest(path, known)}")
        if path.split(".")[0] not in ("model", "train") or path in _FIXED:
            raise InvalidInput(
                f"search.space.{path}: what is searched must lie in model or train, "
                f"without {' and '.join(_FIXED)}"
            )
        integer = kind(path) is int
        for value in _checked(domain, integer):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if integer and not whole and value is not None:
                raise InvalidInput(
                    f"search.space.{path}: the bounds of an integer must be integers, "
                    f"but got {value!r}"
                )
            if domain.choices is None and kind(path) not in (int, float):
                raise InvalidInput(f"search.space.{path}: must have choices, as it is not a number")
            drawn = apply(spec, {**_deciding(spec, path), path: value})
            try:
                rules.check_training(drawn)
            except InvalidInput as error:
                raise InvalidInput(f"search.space.{path} allows {value!r}: {error}") from None
    for point in points(spec):
        rules.check_training(apply(spec, point))
        for path, value in point.items():
            if not contains(spec.search.space[path], value):
                raise InvalidInput(
                    f"search.space.{path} must hold the recipe's own value and those of "
                    f"search.points, which are tried first, but got {value!r}"
                )
    for given in spec.search.points:
        for path in given:
            require(path in spec.search.space, "search.points name searched paths", path=path)


def _checked(domain: Domain, integer: bool) -> Sequence[Any]:
    """The choices, or the bounds and, of integers, the one after the lower: where only multiples of
    a number are allowed, it is not one."""
    if domain.choices is not None:
        return domain.choices
    assert domain.low is not None and domain.high is not None
    between = [domain.low + 1] if integer and domain.low < domain.high else []
    return [domain.low, *between, domain.high]


def _deciding(spec: Spec, path: str) -> Params:
    """Another parameter's value, possible in the space, with which the one at `path` has an effect;
    nothing where it always has. Raises `InvalidInput` where no value gives it one."""
    condition = effects.conditions().get(path)
    if condition is None:
        return {}
    possible = _names(spec, condition.key)
    if not possible & condition.names:
        raise InvalidInput(
            f"search.space.{path} has an effect only where {condition.key} is "
            f"{effects.listed(condition.names)}, but the recipe and its space have "
            f"{effects.listed(possible)}"
        )
    return {condition.key: min(possible & condition.names)}


def _names(spec: Spec, key: str) -> frozenset[str]:
    """The names that `key` has in the recipe or may have in its space."""
    domain = spec.search.space.get(key)
    given = (spec.value(key),) if domain is None else domain.choices or ()
    return frozenset(map(str, given))


def contains(domain: Domain, value: Any) -> bool:
    if domain.choices is not None:
        return value in domain.choices
    assert domain.low is not None and domain.high is not None
    return value is not None and domain.low <= value <= domain.high


def kind(path: str) -> type:
    """int, float or str: the type of the spec's field, which decides how it is searched.

    An optional field is searched as if it were never None, unless None is among its choices.
    """
    record: type[BaseModel] = Spec
    *sections, key = path.split(".")
    for name in sections:
        section = record.model_fields[name].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        record = section
    annotation = record.model_fields[key].annotation
    if annotation in (int, int | None):
        return int
    return float if annotation in (float, float | None) else str


def _ordered(spec: Spec) -> list[str]:
    """The searched paths, with those on which others depend first."""
    deciding = effects.choices()
    return sorted(spec.search.space, key=lambda path: path not in deciding)


def _effective(spec: Spec, values: Mapping[str, Any]) -> Params:
    """Those of `values` that have an effect under the others."""
    point: Params = {}
    for path in _ordered(spec):
        if active(spec, path, point):
            point[path] = values[path]
    return point


def _domain(path: str, domain: Domain) -> sample.Domain:
    if domain.choices is not None:
        return tune.choice(list(domain.choices))
    assert domain.low is not None and domain.high is not None
    if kind(path) is int:
        integers = tune.lograndint if domain.log else tune.randint
        return integers(int(domain.low), int(domain.high) + 1)
    numbers = tune.loguniform if domain.log else tune.uniform
    return numbers(float(domain.low), float(domain.high))


def _draw(trial: Suggests, path: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case IntDistribution(low=low, high=high, log=log):
            return trial.suggest_int(path, low, high, log=log)
        case FloatDistribution(low=low, high=high, log=log):
            return trial.suggest_float(path, low, high, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(path, choices)
    raise AssertionError(distribution)


def _values(path: str, domain: sample.Domain) -> list[Any]:
    if isinstance(domain, sample.Categorical):
        return list(domain.categories)
    if isinstance(domain, sample.Integer):
        return list(range(domain.lower, domain.upper))
    raise InvalidInput(f"search.space.{path}: a grid needs choices, but got a range")
