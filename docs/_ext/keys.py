"""The keys of a spec, from the records that read them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from raycrt.specs import AugmentationSpec, Domain, Record, Spec
from raycrt.specs.data import Statistics
from raycrt.specs.layers import LayerSpec
from raycrt.specs.sections import WorkerRange

_Schema = dict[str, Any]

# Records that are the value of a key, by how their keys are named here.
_NESTED: dict[str, type] = {
    "train.augmentation": AugmentationSpec,
    "search.space.PATH": Domain,
    "data.normalize": Statistics,
    "data.scale": Statistics,
    "run.workers": WorkerRange,
}


def markdown() -> str:
    """A section for each section of a spec, with an entry for each key."""
    found = []
    for name, field in Spec.model_fields.items():
        found += [f"## {name}\n", _summary(field.annotation), _entries(field.annotation, name)]
        for path, record in _NESTED.items():
            if path.startswith(f"{name}."):
                found += [f"### {path}\n", _summary(record), _entries(record, path)]
    return "\n".join(found)


def layers() -> str:
    """A section for each kind of layer of `model.layers`."""
    found = []
    for record in layer_records():
        kind = kind_of(record)
        found += [f"## {kind}\n", _summary(record), _entries(record, kind, without=("kind",))]
    return "\n".join(found)


def layer_records() -> Iterator[Any]:
    """The record of each kind of layer."""

    def within(annotation: Any) -> Iterator[Any]:
        if isinstance(annotation, type) and issubclass(annotation, Record):
            yield annotation
        else:
            for argument in get_args(annotation):
                yield from within(argument)

    return within(LayerSpec)


def kind_of(record: Any) -> str:
    """The word of a recipe for a kind of layer."""
    [kind] = get_args(record.model_fields["kind"].annotation)
    return kind


def _summary(record: Any) -> str:
    return inspect.cleandoc(record.__doc__ or "") + "\n"


def _entries(record: Any, prefix: str, without: tuple[str, ...] = ()) -> str:
    schema = record.model_json_schema()
    # A record that holds others of its kind is defined among them.
    schema = schema.get("$defs", {}).get(record.__name__, schema)
    needed = schema.get("required", [])
    return "\n".join(
        _entry(f"{prefix}.{key}", stated, key in needed)
        for key, stated in schema["properties"].items()
        if key not in without
    )


def _entry(path: str, stated: _Schema, required: bool) -> str:
    if "description" not in stated:
        raise ValueError(f"the field of {path} must have a description")
    needed = ", must be given" if required else ""
    lines = [f":::{{confval}} {path}", f":type: {values(stated)}{needed}"]
    if "default" in stated and not isinstance(stated["default"], dict):
        lines.append(f":default: ``{_yaml(stated['default'])}``")
    return "\n".join([*lines, "", stated["description"], ":::", ""])


def values(stated: _Schema) -> str:
    """What a key takes, in words."""
    options = stated.get("anyOf") or stated.get("oneOf")
    if "$ref" in stated or "discriminator" in stated:
        return "record"
    if options:
        words = [values(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "const" in stated or "enum" in stated:
        return " or ".join(f"``{_yaml(v)}``" for v in stated.get("enum", [stated.get("const")]))
    kind = stated.get("type")
    if kind == "array":
        items = stated.get("prefixItems")
        if items:
            return f"list of {len(items)} {_several(items[0])}"
        return f"list of {_several(stated['items'])}"
    if kind == "object":
        return "mapping"
    if kind in ("integer", "number"):
        return {"integer": "whole number", "number": "number"}[kind] + _range(stated)
    return {"string": "text", "boolean": "true or false"}[kind or "string"]


def _several(stated: _Schema) -> str:
    one = values(stated)
    if " or " in one:
        return f"values, each {one}"
    return re.sub(r"^(?:record|whole number|number|text|list|mapping)", r"\g<0>s", one)


def _range(stated: _Schema) -> str:
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {stated[word]:,}" for word, sign in words.items() if word in stated]
    return f" {', '.join(bounds)}" if bounds else ""


def _yaml(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
