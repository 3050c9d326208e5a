"""Named recipes: complete specs that ship with the package."""

from __future__ import annotations

from importlib import resources
from itertools import takewhile

from raycrt.errors import InvalidInput, nearest
from raycrt.specs import Spec
from raycrt.system.places.storage import given


def names() -> list[str]:
    """Every recipe that ships, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def about(name: str) -> str:
    """What the recipe of that name is for: the comment at the head of its file."""
    lines = (resources.files(__name__) / f"{name}.yaml").read_text("utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#").strip() for line in comment)


def load(recipe: str) -> Spec:
    """The spec of a recipe's name or of a path or URI of a YAML file."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        return Spec.load(given(recipe))
    known = names()
    if recipe not in known:
        raise InvalidInput(
            f"recipe must be one of {known} or a path to YAML, "
            f"got {recipe!r}{nearest(recipe, known)}"
        )
    with resources.as_file(resources.files(__name__) / f"{recipe}.yaml") as file:
        return Spec.load(file)
