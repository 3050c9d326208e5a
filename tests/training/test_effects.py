"""A spec says what has effect: options that its objective and optimizer do not use are refused."""

import pkgutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from raycrt import data, recipes
from raycrt.errors import InvalidInput
from raycrt.specs import Spec, TrainSpec, strict_yaml, validate
from raycrt.training import loop, objectives
from raycrt.training.folding.part import fresh
from raycrt.training.objectives import OBJECTIVES, Losses, Objective
from raycrt.training.optimizers import OPTIMIZERS, Optimizer
from raycrt.training.options import effects, rules
from raycrt.training.registry import register
from raycrt.tuning.trials import space

IDLE = {
    "gamma of pgd": (
        {"objective": "pgd", "gamma": 0.01},
        r"train\.objective=pgd does not use train\.gamma=0\.01 \(an option of crt or crt-all\): "
        r"leave it out of the file, or go back to the default by --set train\.gamma=0\.0$",
    ),
    "targets of crt": (
        {"objective": "crt", "targets": 2},
        r"train\.objective=crt does not use train\.targets=2 \(an option of crt-all\): .*=3$",
    ),
    "two options of standard": (
        {"objective": "standard", "attack_steps": 2, "radius": 0.5},
        r"standard does not use train\.attack_steps=2 .* and train\.radius=0\.5 .*: leave them out "
        r".*--set train\.attack_steps=4 --set train\.radius=1\.58$",
    ),
    "Muon's rate under Adam": (
        {"muon_rate": 0.2},
        r"train\.optimizer=adam does not use train\.muon_rate=0\.2 \(an option of muon\)",
    ),
    "a scale without its layers": (
        {"linear_scale": 0.02},
        r"train\.linear_scale=0\.02 has no effect without train\.linear_layers: leave it out",
    ),
    "the end of no augmentation": (
        {"augmentation": {"until": 0.5}},
        r"augmentation\.until=0\.5 has no effect without train\.augmentation",
    ),
    "unknown objective": (
        {"objective": "ctr-all"},
        r"train\.objective must be one of .*; the nearest known is 'crt-all', but got 'ctr-all'",
    ),
    "unknown optimizer": ({"optimizer": "adan"}, r"train\.optimizer must be .*nearest.*'adam'"),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_has_no_effect_is_refused_before_any_training(name):
    train, message = IDLE[name]
    spec = validate({"train": train})
    for start in (rules.check_training, lambda spec: loop.train(spec, data.load(spec.data).train)):
        with pytest.raises(InvalidInput, match=message) as caught:
            start(spec)
        assert "\n" not in str(caught.value)


def test_the_way_out_that_an_error_names_is_one():
    spec = validate({"train": {"objective": "standard", "attack_steps": 2, "radius": 0.5}})
    with pytest.raises(InvalidInput) as caught:
        rules.check_training(spec)
    words = str(caught.value).split("--set ")[1:]
    reset = dict(word.split("=") for word in words)
    rules.check_training(
        spec.override({path: strict_yaml.parse(value, path) for path, value in reset.items()})
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_spec_that_is_written_out_in_full_loads_and_trains(tmp_path, objective, optimizer):
    chosen = {"train.objective": objective, "train.optimizer": optimizer}
    spec = effects.override(recipes.load("mnist-2"), chosen)
    spec.save(tmp_path)
    again = Spec.load(tmp_path)
    assert again == spec and set(again.model_dump()["train"]) == set(TrainSpec.model_fields)
    rules.check_training(again)


def test_stored_specs_of_results_still_load():
    kept = Path(__file__).parents[2] / "docs" / "results" / "search-mnist" / "search"
    for file in ("spec.yaml", "best.yaml"):
        rules.check_training(Spec.load(kept / file))


def test_a_spec_is_read_without_the_objective_that_its_weights_come_from():
    """Certificates are proved, and checked, wherever the weights were found."""
    spec = validate({"train": {"objective": "of-somebody-else", "gamma": 0.1}})
    rules.check_certification(spec)
    assert validate(strict_yaml.parse(spec.to_yaml(), "spec")) == spec


@pytest.fixture
def focal():
    """An objective as a newcomer would add it, for the time of a test."""

    @register(OBJECTIVES, "focal", uses=("gamma",))
    class Focal(Objective):
        def losses(self, x, labels, radius):
            logits = self.view(x)
            loss = F.cross_entropy(logits, labels, reduction="none")
            weight = (1 - torch.exp(-loss.detach())) ** self.options.gamma
            right = logits.argmax(1) == labels
            return Losses(loss=weight * loss, correct=right, robust=right)

    yield Focal
    del OBJECTIVES["focal"]


def test_a_class_is_all_that_a_new_objective_takes(focal):
    tree = {"model": {"width": 8}, "train": {"objective": "focal", "gamma": 2.0, "epochs": 2}}
    spec = validate(tree)
    parts = data.load(spec.data).train
    losses = []
    loop.train(spec, parts, report=lambda end: losses.append(end.metrics["loss"]))
    assert losses[1] < losses[0]
    with pytest.raises(InvalidInput, match=r"focal does not use train\.radius=0\.5"):
        rules.check_training(spec.override({"train.radius": 0.5}))
    names = {"choices": ["focal", "standard"]}
    searched = spec.override(
        {"search.space": {"train.objective": names, "train.gamma": {"low": 1, "high": 3}}}
    )
    space.check(searched)
    assert space.active(searched, "train.gamma", {"train.objective": "focal"})
    assert not space.active(searched, "train.gamma", {"train.objective": "standard"})


def test_an_objective_has_the_options_that_it_states_and_no_others(focal):
    spec = validate({"model": {"width": 8}, "train": {"objective": "focal"}})
    made = focal(fresh(spec), spec.train)
    assert made.options.gamma == 0
    with pytest.raises(AttributeError, match=r"^train\.targets is read but not in `uses`$"):
        _ = made.options.targets


def test_every_file_of_objectives_and_every_optimizer_is_registered():
    found = pkgutil.iter_modules(objectives.__path__, f"{objectives.__name__}.")
    files = {file.name for file in found} - {Objective.__module__}
    left_out = files - {kind.__module__ for kind in OBJECTIVES.values()}
    left_out |= {kind.__name__ for kind in Optimizer.__subclasses__()} - {
        kind.__name__ for kind in OPTIMIZERS.values()
    }
    assert not left_out, f"no class of {sorted(left_out)} has @register"


@pytest.mark.parametrize("pairwise", [None, False])
def test_an_objective_states_the_curvature_that_it_uses(focal, monkeypatch, pairwise):
    monkeypatch.setattr(focal, "pairwise", pairwise)
    spec = validate({"model": {"width": 8}, "train": {"objective": "focal"}})
    network = fresh(spec)
    with pytest.raises(AssertionError, match=r"pairwise.* True"):
        focal(network, spec.train).curvature.margins(network)


def test_a_name_is_registered_once_and_uses_keys_of_train():
    with pytest.raises(InvalidInput, match=r"a name is registered once.*'crt'"):
        register(OBJECTIVES, "crt")
    with pytest.raises(InvalidInput, match=r"uses names keys of train.*'gama'"):
        register(OBJECTIVES, "new", uses=("gama",))


def test_a_search_refuses_what_none_of_its_trials_would_use():
    domains = {"train.objective": {"choices": ["standard", "crt"]}}
    spec = validate(
        {"train": {"objective": "standard", "gamma": 0.1}, "search": {"space": domains}}
    )
    space.check(spec)
    assert space.apply(spec, {"train.objective": "standard"}).train.gamma == 0
    assert space.apply(spec, {"train.objective": "crt"}).train.gamma == 0.1
    with pytest.raises(InvalidInput, match=r"=crt or standard does not use train\.targets"):
        space.check(spec.override({"train.targets": 5}))
    with pytest.raises(InvalidInput, match=r"train\.objective must be one of .* but got 'ctr'"):
        space.check(spec.override({"search.space": {"train.objective": {"choices": ["ctr"]}}}))


def test_bounds_of_conditional_parameters_are_checked_where_they_have_effect():
    domains = {
        "train.objective": {"choices": ["standard", "crt"]},
        "train.gamma": {"low": -1, "high": 1},
    }
    spec = validate({"train": {"objective": "standard"}, "search": {"space": domains}})
    with pytest.raises(InvalidInput, match=r"train\.gamma: .*must be at least 0"):
        space.check(spec)
