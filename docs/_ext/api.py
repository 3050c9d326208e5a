"""What programs call: the names of `raycrt.__all__`, from their docstrings."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from typing import Any

import raycrt
from raycrt.verify import Report, verify_run

_Simple = bool | int | float | str | tuple | None


def markdown() -> str:
    """An entry for each public name: the version, functions, classes with their methods."""
    names = [name for name in raycrt.__all__ if name != "__version__"]
    functions = sorted(name for name in names if name.islower())
    classes = sorted(name for name in names if not name.islower())
    parts = [":::{py:data} raycrt.__version__\n:type: str\n\nThe version of the package.\n:::\n"]
    for name in functions:
        # The package is callable, and does then what this function does.
        found = verify_run if name == "verify" else getattr(raycrt, name)
        parts.append(f"## raycrt.{name}\n\n{_entry('function', f'raycrt.{name}', found)}")
        if found is verify_run:
            parts.append(_class("raycrt.verify.Report", Report))
    for name in classes:
        parts.append(f"## raycrt.{name}\n\n{_class(f'raycrt.{name}', getattr(raycrt, name))}")
    return "\n".join(parts)


def _class(name: str, found: Any) -> str:
    if issubclass(found, Exception):
        return _entry("exception", name, found)
    # An enumeration has names, and a record the fields that its docstring describes.
    called = inspect.isfunction(vars(found).get("__init__")) and not issubclass(found, enum.Enum)
    return _entry("class", name, found, inside=_members(found), called=called)


def _members(owner: type) -> Iterator[str]:
    for name, member in vars(owner).items():
        own = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not inspect.getdoc(own) or name == "forward":
            continue
        if isinstance(own, property):
            yield _entry("property", name, own, called=False)
        elif inspect.isfunction(own):
            first = name if isinstance(member, staticmethod) else None
            yield _entry("method", name, own, bound=first is None)
    if issubclass(owner, enum.Enum):
        yield from (_entry("attribute", member.name, member, called=False) for member in owner)


def _entry(
    kind: str,
    name: str,
    found: Any,
    *,
    inside: Iterator[str] | None = None,
    called: bool = True,
    bound: bool = False,
) -> str:
    fence = ":" * (4 if inside is not None else 3)
    stated = name + (_signature(found, bound) if called and kind != "exception" else "")
    said = found.sentence if isinstance(found, enum.Enum) else inspect.getdoc(found) or ""
    return "\n".join([f"{fence}{{py:{kind}}} {stated}", "", said, "", *(inside or ()), fence, ""])


def _signature(found: Any, bound: bool) -> str:
    signature = inspect.signature(found)
    kept = list(signature.parameters.values())[1 if bound else 0 :]
    returned = signature.return_annotation
    if isinstance(returned, str):
        signature = signature.replace(return_annotation=_Written(returned))
    return str(signature.replace(parameters=[_readable(each) for each in kept]))


def _readable(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without the default values of programs, which are no text, and with types as written."""
    default = parameter.default
    if default is not inspect.Parameter.empty and not isinstance(default, _Simple):
        parameter = parameter.replace(default=_Written())
    if isinstance(parameter.annotation, str):
        parameter = parameter.replace(annotation=_Written(parameter.annotation))
    return parameter


class _Written:
    """Text that stands in a signature as it is."""

    def __init__(self, text: str = "...") -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
