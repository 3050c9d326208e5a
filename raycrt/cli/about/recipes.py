"""`raycrt recipes` and `raycrt show`."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from raycrt import recipes as shipped
from raycrt.cli.about import completion
from raycrt.cli.about.keys import Key, at, keys
from raycrt.specs import Spec, strict_yaml

_COLUMNS = 80
# YAML is broken after the element that passes its width; most are numbers, of no more characters.
_NUMBER = 24


def recipes() -> None:
    """List the recipes that ship, and what each is for."""
    names = shipped.names()
    column = max(map(len, names)) + 2
    for name in names:
        print(
            textwrap.fill(
                shipped.about(name),
                _COLUMNS,
                initial_indent=name.ljust(column),
                subsequent_indent=" " * column,
                break_on_hyphens=False,
            )
        )


def show(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=completion.recipes,
            help="Name of a shipped recipe, or a path or URI of YAML.",
        ),
    ],
) -> None:
    """Print every key of a recipe with its value, its meaning and its default.

    The output is a recipe itself: raycrt show digits > mine.yaml
    """
    spec = shipped.load(recipe)
    title = shipped.about(recipe) if recipe in shipped.names() else ""
    print(_text(spec, f"{recipe}: {title}" if title else recipe), end="")


def _text(spec: Spec, title: str) -> str:
    """`spec` as YAML whose comments have the `title` and the meaning of each key."""
    tree, parts, inside = spec.model_dump(mode="json"), [_comment(title, "")], ""
    for key in keys():
        section, _, name = key.path.rpartition(".")
        indent = "  " * len(section.split("."))
        if section != inside:
            # A section within one is its last key.
            gap = "" if "." in section else "\n"
            parts.append(f"{gap}{indent[2:]}{section.split('.')[-1]}:\n")
            inside = section
        value = at(tree, key.path)
        parts += _comment(_meaning(key, value), indent), _lines(name, value, indent)
    return "".join(parts)


def _meaning(key: Key, value: object) -> str:
    choices = f"; one of {', '.join(key.choices)}" if len(key.choices) > 2 else ""
    default = "default" if value == key.default else f"default: {strict_yaml.in_line(key.default)}"
    return f"{key.meaning}{choices} ({default})"


def _comment(text: str, indent: str) -> str:
    begin = f"{indent}# "
    wrapped = textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=begin,
        subsequent_indent=begin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{wrapped}\n"


def _lines(name: str, value: object, indent: str) -> str:
    """A key and its value; a mapping that is too long for a line has one for each of its keys."""
    begin = f"{indent}{name}:"
    if isinstance(value, dict) and len(begin + strict_yaml.in_line(value)) >= _COLUMNS:
        inner = (_lines(strict_yaml.in_line(k), v, indent + "  ") for k, v in value.items())
        return "".join([f"{begin}\n", *inner])
    text = strict_yaml.in_line(value, _COLUMNS - len(begin) - _NUMBER)
    return f"{begin} {text}\n".replace("\n    ", f"\n{indent}    ")
