"""One declaration of the space, in every form."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search import sample

from raycrt import InvalidInput, recipes
from raycrt.specs import Spec, validate
from raycrt.training import objectives
from raycrt.tuning.trials import space
from tests.models import random_network


def spec_with(domains: dict[str, Any], **sections: Any) -> Spec:
    search = {"space": domains, **sections.pop("search", {})}
    return validate({"search": search, **sections})


def draws(spec: Spec, n: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(spec, study.ask()) for _ in range(n)]


MIXED = spec_with(
    {
        "model.beta": {"low": 0.5, "high": 20, "log": True},
        "model.activation": {"choices": ["softplus", "tanh"]},
        "train.gamma": {"low": 0, "high": 1},
        "train.objective": {"choices": ["standard", "crt", "crt-all"]},
        "train.targets": {"low": 1, "high": 9},
        "model.width": {"low": 8, "high": 512, "log": True},
    }
)


def test_integers_stay_integers_and_float_fields_floats() -> None:
    for params in draws(MIXED):
        assert type(params["model.width"]) is int
        if "train.gamma" in params:
            assert type(params["train.gamma"]) is float
        if "train.targets" in params:
            assert type(params["train.targets"]) is int
    assert len({p.get("train.gamma") for p in draws(MIXED)} - {None, 0.0, 1.0}) > 10


def test_both_forms_have_the_same_ranges_and_choices() -> None:
    tunes, optunas = space.tune_space(MIXED), space.optuna_space(MIXED)
    assert list(tunes) == list(optunas)
    assert set(tunes) == set(MIXED.search.space)
    for path, distribution in optunas.items():
        declared, domain = MIXED.search.space[path], tunes[path]
        drawn = domain.sample(size=50, random_state=0)
        if declared.choices is not None:
            assert isinstance(distribution, CategoricalDistribution)
            assert distribution.choices == declared.choices == tuple(domain.categories)
            assert set(drawn) == set(declared.choices)
            continue
        integer = space.kind(path) is int
        assert isinstance(distribution, IntDistribution if integer else FloatDistribution)
        bounds = distribution.low, distribution.high, distribution.log
        assert bounds == (declared.low, declared.high, declared.log)
        assert isinstance(domain, sample.Integer if integer else sample.Float)
        assert (domain.lower, domain.upper - integer) == (declared.low, declared.high)
        assert all(isinstance(value, Integral) == integer for value in drawn)
        assert all(space.contains(declared, value) for value in drawn)
    logs = {path for path, domain in tunes.items() if "Log" in str(domain.get_sampler())}
    assert logs == {"model.beta", "model.width"}


def test_parameters_without_effect_are_not_drawn() -> None:
    seen = set()
    for params in draws(MIXED):
        activation, objective = params["model.activation"], params["train.objective"]
        assert ("model.beta" in params) == (activation == "softplus")
        assert ("train.gamma" in params) == (objective != "standard")
        assert ("train.targets" in params) == (objective == "crt-all")
        seen.add((activation, objective))
    assert len(seen) == 6


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_what_is_searched_under_an_objective_is_what_changes_its_loss(objective: str) -> None:
    torch.manual_seed(0)
    # Means in float32 differ in their last bits where an option changes nothing.
    network, images = random_network(3).double(), torch.randn(20, 5).double()
    labels = torch.arange(20) % 4
    base = validate({"train": {"objective": objective, "radius": 0.05, "gamma": 0.1, "targets": 3}})

    def loss(spec: Spec) -> float:
        module = objectives.build(network, spec.train)
        radius = torch.tensor(spec.train.radius, dtype=torch.float64)
        losses = module(images, labels, radius).loss
        return float(losses.detach().mean())

    others = {"gamma": 0.2, "radius": 0.02, "attack_steps": 1, "targets": 1}
    for name, value in others.items():
        path = f"train.{name}"
        changed = loss(base.override({path: value})) != loss(base)
        assert changed == space.active(base, path, {}), path
    ramped, radius = (space.active(base, f"train.{name}", {}) for name in ("ramp", "radius"))
    assert ramped == radius, "uses has ramp exactly where it has radius"


def test_every_draw_is_a_valid_spec_even_where_the_recipe_sets_beta() -> None:
    base = MIXED.override({"model.beta": 4.0})
    for params in draws(base):
        applied = space.apply(base, params)
        assert applied.model.beta == params.get("model.beta", 1.0)
        assert applied.model.width == params["model.width"]


def test_fields_that_may_be_none_are_searched_as_numbers_or_with_none_as_a_choice() -> None:
    spec = spec_with(
        {
            "train.components": {"low": 8, "high": 64, "log": True},
            "train.averaging": {"choices": [None, 0.9, 0.99]},
            "train.augmentation.rotation": {"low": 0, "high": 10},
        },
        train={"components": 16},
    )
    space.check(spec)
    drawn = draws(spec)
    assert all(type(params["train.components"]) is int for params in drawn)
    assert {params["train.averaging"] for params in drawn} == {None, 0.9, 0.99}
    for params in drawn:
        assert space.apply(spec, params).train.averaging == params["train.averaging"]
    with pytest.raises(InvalidInput, match="must hold the recipe's own value"):
        space.check(spec_with({"train.averaging": {"low": 0.9, "high": 0.99}}))


def test_muons_rate_is_drawn_for_muon_only() -> None:
    spec = spec_with(
        {
            "train.muon_rate": {"low": 0.03, "high": 0.3, "log": True},
            "train.optimizer": {"choices": ["adam", "muon"]},
        }
    )
    for params in draws(spec, 20):
        assert ("train.muon_rate" in params) == (params["train.optimizer"] == "muon")


def test_the_recipe_itself_comes_first_then_the_given_points() -> None:
    spec = spec_with(
        {
            "train.gamma": {"low": 1e-4, "high": 1.0, "log": True},
            "model.depth": {"low": 2, "high": 4},
        },
        train={"gamma": 0.01},
        search={"points": [{"model.depth": 4}, {"train.gamma": 0.01}]},
    )
    assert space.points(spec) == [
        {"train.gamma": 0.01, "model.depth": 2},
        {"train.gamma": 0.01, "model.depth": 4},
    ]


def test_a_grid_holds_each_effective_combination_once() -> None:
    spec = spec_with(
        {
            "model.activation": {"choices": ["softplus", "tanh"]},
            "model.beta": {"choices": [1.0, 5.0]},
            "model.depth": {"low": 2, "high": 3},
        },
        search={"algorithm": "grid"},
    )
    grid = space.grid(spec)
    assert len(grid) == 6
    assert {"model.activation": "tanh", "model.depth": 3} in grid


@pytest.mark.parametrize(
    ("domains", "match"),
    [
        ({}, "names a parameter"),
        ({"data.validation": {"low": 0.1, "high": 0.5}}, "must lie in model or train"),
        ({"train.epochs": {"low": 1, "high": 5}}, "must lie in model or train"),
        ({"model.depth": {"low": 2.5, "high": 4}}, "bounds of an integer must be integers"),
        ({"model.depth": {"low": 2, "high": 40}}, r"model\.depth"),
        ({"model.depth": {"low": 3, "high": 4}}, "must hold the recipe's own value"),
        ({"model.activation": {"choices": ["softplus", "relu"]}}, r"model\.activation"),
        ({"model.activation": {"low": 0, "high": 1}}, "must have choices"),
        (
            {"train.muon_rate": {"low": 0.03, "high": 0.3}},
            r"train\.muon_rate has an effect only where train\.optimizer is muon, .* have adam$",
        ),
        (
            {
                "train.objective": {"choices": ["standard", "ibp", "crt-all"]},
                "train.attack_steps": {"low": 1, "high": 4},
                "model.activation": {"choices": ["softplus", "tanh"]},
                "model.beta": {"low": 0.5, "high": 2},
                "train.optimizer": {"choices": ["adam"]},
                "train.muon_rate": {"low": 0.03, "high": 0.3},
            },
            r"train\.muon_rate has an effect only where",
        ),
    ],
)
def test_an_impossible_space_is_refused_in_one_line(domains: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match) as caught:
        space.check(spec_with(domains))
    assert "\n" not in str(caught.value)


def test_a_point_off_the_space_is_refused() -> None:
    domains = {"model.depth": {"low": 2, "high": 4}}
    with pytest.raises(InvalidInput, match="must hold"):
        space.check(spec_with(domains, search={"points": [{"model.depth": 9}]}))
    with pytest.raises(InvalidInput, match="name searched paths"):
        space.check(spec_with(domains, search={"points": [{"model.width": 9}]}))


def test_a_grid_of_a_continuous_range_is_refused() -> None:
    spec = spec_with({"train.learning_rate": {"low": 1e-4, "high": 1e-2}})
    with pytest.raises(InvalidInput, match="a grid needs choices"):
        space.grid(spec)


def test_every_shipped_recipe_with_a_space_can_be_searched(tmp_path: Path) -> None:
    searched = [recipes.load(name) for name in recipes.names()]
    searched = [spec for spec in searched if spec.search.space]
    assert searched
    for spec in searched:
        space.check(spec)
        assert {path for params in draws(spec, 20) for path in params} == set(spec.search.space)


def test_a_radius_is_searched_for_interval_bounds_too() -> None:
    spec = recipes.load("mnist-ibp")
    assert space.points(spec) == [{"train.learning_rate": 0.003, "train.radius": 1.58}]


def test_an_algorithm_of_one_objective_is_refused_for_two() -> None:
    with pytest.raises(InvalidInput, match="cmaes has one objective"):
        spec_with({}, search={"pareto": True, "algorithm": "cmaes"})


def test_what_only_a_search_cannot_do_is_refused_by_search_alone() -> None:
    own = spec_with({"train.gamma": {"low": 0, "high": 1}}, search={"rungs": [2, 8]})
    space.check(own)
    with pytest.raises(InvalidInput, match=r"search.rungs < train.epochs.*\[2, 8\], epochs=8"):
        space.check(own.override({"train.epochs": 8}))
    unknown = spec_with({"train.gama": {"low": 0, "high": 1}})
    with pytest.raises(InvalidInput, match=r"train\.gama is not a key of a spec; the nearest"):
        space.check(unknown)


def test_a_space_that_training_or_certification_refuses_is_refused() -> None:
    deep = {"model": {"depth": 4}, "train": {"linear_layers": 2}}
    with pytest.raises(InvalidInput, match=r"train\.linear_layers"):
        space.check(spec_with({"model.depth": {"low": 2, "high": 4}}, **deep))
    halves = {"model": {"width": 64}, "train": {"mirror_invariant": True}}
    with pytest.raises(InvalidInput, match=r"width allows 33: .* multiple of 2 .*width=33"):
        space.check(spec_with({"model.width": {"low": 32, "high": 64}}, **halves))
    space.check(spec_with({"model.width": {"choices": [32, 64]}}, **halves))
    convolutional = {"model": {"channels": [4]}, "certify": {"deployment": "float32"}}
    with pytest.raises(InvalidInput, match=r"certify\.deployment"):
        space.check(spec_with({"train.gamma": {"low": 0, "high": 1}}, **convolutional))
