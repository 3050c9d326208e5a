"""What is wrong with a spec, in one line: the key, the rule and the value.

Rules are in the words of this project. pydantic's own are about Python, as "valid tuple" is, and
its paths name the alternatives of a key that has several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raycrt.errors import nearest

# Most characters of a value in an error.
_SHOWN = 100
# Rules of the type of a value, by the kind of the error. A key may have several types.
_TYPES = {
    "string_type": "be text",
    "path_type": "be a path",
    "int_type": "be an integer",
    "int_from_float": "be an integer",
    "int_parsing_size": "be a smaller integer",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "tuple_type": "be a list",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "model_attributes_type": "be a mapping",
    "literal_error": "be {expected}",
}
# Rules of values that have the right type.
_VALUES = {
    "greater_than_equal": "be at least {ge}",
    "greater_than": "be above {gt}",
    "less_than_equal": "be at most {le}",
    "less_than": "be below {lt}",
    "finite_number": "be finite",
    "too_short": "have a length of at least {min_length}",
    "too_long": "have a length of at most {max_length}",
    "missing": "be given",
}


def sentence(error: ValidationError, given: Any, known: Sequence[str]) -> str:
    """The first mistake in the spec `given`, and how many more there are; `known` are all keys."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for each in error.errors():
        found.setdefault(_path(each, given), []).append(each)
    # A mistake in a value says more than one about its type, which is that of an alternative.
    for path in [p for p in found if any(q[: len(p)] == p and q != p for q in found)]:
        del found[path]
    path, mistakes = next(iter(found.items()))
    name = ".".join(key(part) for part in path)
    if mistakes[0]["type"] == "extra_forbidden":
        return f"{name}: unknown key{nearest(name, known)}"
    rule = _rule(mistakes)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    where = f"{name}: " if name else ""
    return f"{where}{rule}, but got {_value(mistakes[0], rule)}{more}"


def key(part: object) -> str:
    """A key as it stands in a path; one that is none may be long, or hold a secret."""
    text = str(part)
    return text if re.fullmatch(r"[\w-]{1,60}", text) else refused(text)


def refused(value: Any) -> str:
    """A value that is refused in one short line; a URI may hold a secret."""
    return "a URI" if "://" in str(value) else short(value)


def short(value: Any) -> str:
    """`value` in one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _path(mistake: ErrorDetails, given: Any) -> tuple[int | str, ...]:
    """The keys that lead to a mistake, without the names of alternatives between them."""
    found: list[int | str] = []
    for part in mistake["loc"]:
        listed = isinstance(given, list | tuple) and part in range(len(given))
        if listed or (isinstance(given, dict) and part in given):
            given = given[part]
        elif not (mistake["type"] == "missing" and part == mistake["loc"][-1]):
            continue
        found.append(part)
    return tuple(found)


def _rule(mistakes: Sequence[ErrorDetails]) -> str:
    """What the value of one key must be, or one of several things."""
    of_value = [each for each in mistakes if each["type"] not in _TYPES]
    rules = list(dict.fromkeys(map(_one_rule, of_value or mistakes)))
    return " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in rules[1:])])


def _one_rule(mistake: ErrorDetails) -> str:
    kind, facts = mistake["type"], mistake.get("ctx", {})
    stated = (_TYPES | _VALUES).get(kind)
    if stated is None:
        message = mistake["msg"].removeprefix("Value error, ")
        return f"{message[0].lower()}{message[1:]}"
    names = re.findall(r"'([^']+)'", str(facts.get("expected")))
    choices = names if len(names) > 1 else []
    limits = {name: f"{x:g}" if isinstance(x, float) else x for name, x in facts.items()}
    return f"must {stated.format(**limits)}{nearest(str(mistake['input']), choices)}"


def _value(mistake: ErrorDetails, rule: str) -> str:
    """The value that was given; of a section only the keys that the rule names."""
    given = mistake["input"]
    if isinstance(given, dict) and "://" not in str(given):
        named = set(re.findall(r"\w+", rule))
        given = {key: value for key, value in given.items() if key in named} or given
    return refused(given)
