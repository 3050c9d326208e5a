"""The keys of a spec: what each means, its default, and its values where they are few."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from raycrt.specs import Spec, paths, strict_yaml


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its dotted `path`, its `meaning`, its `default` as in JSON, and in YAML its
    `choices`, all the values that it can have, or all that ship; none where they are not few."""

    path: str
    meaning: str
    default: Any
    choices: tuple[str, ...]


def keys() -> list[Key]:
    """Every key of a spec, in the order of its sections."""
    defaults = Spec().model_dump(mode="json")
    return [_key(path, at(defaults, path)) for path in paths()]


def at(tree: Any, path: str) -> Any:
    """The value in `tree` at a dotted path."""
    for part in path.split("."):
        tree = tree[part]
    return tree


def _key(path: str, default: Any) -> Key:
    *sections, name = path.split(".")
    record: Any = Spec
    for section in sections:
        record = record.model_fields[section].annotation
    field = record.model_fields[name]
    return Key(
        path=path,
        meaning=field.description or "",
        default=default,
        choices=tuple(map(strict_yaml.in_line, field.examples or _values(field.annotation))),
    )


def _values(kind: Any) -> tuple[Any, ...]:
    """All values of a type that has few; none for another type."""
    if kind is bool:
        return (True, False)
    if kind is type(None):
        return (None,)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments
    if origin is Annotated:
        return _values(arguments[0])
    if origin in (Union, UnionType):
        parts = [_values(part) for part in arguments]
        return tuple(value for part in parts for value in part) if all(parts) else ()
    return ()
