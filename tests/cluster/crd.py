"""The JSON schema of what a Kubernetes custom resource definition (CRD) accepts."""

from __future__ import annotations

from typing import Any

import jsonschema

Schema = dict[str, Any]

_INT_OR_STRING = "x-kubernetes-int-or-string"
_OPEN = "x-kubernetes-preserve-unknown-fields"
# What is translated here, or is no rule about a single resource (`x-kubernetes-...`).
_TRANSLATED = ("properties", "items", "additionalProperties", "required", "nullable")


def accepted(crd: Schema, version: str) -> Schema:
    """The schema of the resources that `crd` accepts in one of its versions.

    A key that the definition does not list is refused (an API server would drop it in silence),
    unless the definition keeps unknown ones there; `metadata` belongs to Kubernetes and is open. A
    required key with a default may be missing. Rules in CEL (`x-kubernetes-validations`) are left
    out.
    """
    [found] = [each for each in crd["spec"]["versions"] if each["name"] == version]
    schema = _closed(found["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{crd['spec']['group']}/{version}"},
        "kind": {"const": crd["spec"]["names"]["kind"]},
        "metadata": {"type": "object"},
    }
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return schema


def _closed(node: Schema) -> Schema:
    """One node of a definition, with all below it, as JSON schema."""
    made = {
        key: value
        for key, value in node.items()
        if key not in _TRANSLATED and not key.startswith("x-kubernetes-")
    }
    if node.get(_INT_OR_STRING):
        made["type"] = ["integer", "string"]
    if node.get("nullable"):
        made["type"] = [made["type"], "null"]
    properties = node.get("properties", {})
    if properties:
        made["properties"] = {key: _closed(value) for key, value in properties.items()}
    required = [key for key in node.get("required", ()) if "default" not in properties.get(key, {})]
    if required:
        made["required"] = required
    if "items" in node:
        made["items"] = _closed(node["items"])
    others = node.get("additionalProperties")
    if isinstance(others, dict):
        made["additionalProperties"] = _closed(others)
    elif node.get("type") == "object" and not others and not node.get(_OPEN):
        made["additionalProperties"] = False
    return made


def differences(ours: Schema, theirs: Schema) -> list[str]:
    """Where `ours` allows what `theirs` does not, as dotted paths with the reason: keys, types and
    single values of `ours`, and keys that only `theirs` requires. `metadata` at the root is not
    looked at."""
    kept = {key: value for key, value in ours["properties"].items() if key != "metadata"}
    return _compared({**ours, "properties": kept}, theirs, ours, "")


def _compared(ours: Schema, theirs: Schema, root: Schema, path: str) -> list[str]:
    if "$ref" in ours:
        return _compared(root["$defs"][ours["$ref"].rpartition("/")[2]], theirs, root, path)
    values = [ours["const"]] if "const" in ours else ours.get("enum")
    if values is not None:
        theirs_is = jsonschema.Draft202012Validator(theirs).is_valid
        return [f"{path}: the value {value}" for value in values if not theirs_is(value)]
    found = []
    types = theirs.get("type", ours["type"])
    if ours["type"] not in (types if isinstance(types, list) else [types]):
        found.append(f"{path}: the type {ours['type']}")
    missing = set(theirs.get("required", ())) - set(ours.get("required", ())) - {"metadata"}
    found += [f"{path}.{key}: required" for key in sorted(missing)]
    others = theirs.get("additionalProperties", {})
    for key, below in ours.get("properties", {}).items():
        there = theirs.get("properties", {}).get(key, others)
        found += (
            _compared(below, there, root, f"{path}.{key}")
            if isinstance(there, dict)
            else [f"{path}.{key}: unknown"]
        )
    for key in ("items", "additionalProperties"):
        if ours.get(key):
            below, there = ours[key], theirs.get(key, {})
            found += (
                _compared(below, there, root, f"{path}.*")
                if isinstance(there, dict)
                else [f"{path}.*: unknown"]
            )
    return found
