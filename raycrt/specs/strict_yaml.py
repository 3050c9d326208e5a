"""Strict YAML for specs: UTF-8, values as in YAML 1.2, each key once, no aliases.

YAML 1.1, which PyYAML reads by default, takes 1e-3 for text, 010 for eight, 1:30 for ninety and
`no` for false; it lets the last of two equal keys win, and lets ten lines of aliases stand for a
billion values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from raycrt.errors import InvalidInput
from raycrt.system.places.storage import Place

# No spec is that long, and no integer in one has that many digits.
_MOST_BYTES, _MOST_DIGITS = 2**20, 100
_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2: tag, pattern, first characters.
_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
# The schema in PyYAML's form, for loader and dumper.
_RESOLVERS: dict[str, Any] = {}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{alias.anchor} must be written out",
                problem_mark=alias.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != f"{_TAG}str":
                said = f"a key must be text, but got {getattr(key, 'value', key.tag)!r:.60}"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            if key.value in seen:
                said = f"the key {key.value!r} occurs twice"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_int(self, node: Any) -> int:
        text = str(self.construct_scalar(node))
        if len(text) > _MOST_DIGITS:
            said = f"an integer must have at most {_MOST_DIGITS} digits"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_float(self, node: Any) -> float:
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    # Quotes text that the loader would take for a number.
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_float)


def parse(text: str, name: str) -> Any:
    """The value of `text`; `InvalidInput` states `name` and the line that is not strict YAML."""
    try:
        # A safe loader: it makes nothing but text, numbers, lists and dictionaries.
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        said = f"line {mark.line + 1}: {error.problem}" if mark else str(error)  # type: ignore[union-attr]
        raise InvalidInput(f"{name} must be YAML: {' '.join(said.split())}") from None
    except RecursionError:
        raise InvalidInput(f"{name} must be YAML that is nested less deeply") from None


def read(file: Place) -> Any:
    """The value in `file`; `InvalidInput` unless it can be read and is not empty."""
    try:
        with file.open("rb") as lines:
            raw = lines.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{file} must be a file that can be read: {error.strerror}") from None
    if len(raw) > _MOST_BYTES:
        raise InvalidInput(f"{file} must be a spec, but it has more than {_MOST_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{file} must be text in UTF-8, but byte {error.start} is {raw[error.start]:#04x}"
        ) from None
    found = parse(text, str(file))
    if found is None:
        raise InvalidInput(f"{file} must state a spec, but it is empty")
    return found


def write(tree: Any) -> str:
    """`tree` as YAML, ASCII, in the order of its keys."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def in_line(value: Any, width: int = 10**6) -> str:
    """`value` as YAML between other text, as in [1, 2]; broken into lines at `width` columns."""
    # In a list: a number alone would end with a mark of the document's end.
    text = yaml.dump([value], Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=width)
    return text[1:-2]
