"""The RayJob fits KubeRay's own definition, and our schema of it allows nothing beyond that."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster import crd
from tests.cluster.test_files import RAYJOB, ROOT, SCHEMA, change

DEFINITION = "RAYCRT_KUBERAY_CRD"
# A definition with each of the things that the translation has to respect.
SMALL: dict[str, Any] = yaml.safe_load(
    """
spec:
  group: ray.io
  names: {kind: Small}
  versions:
    - name: v1alpha1
      schema: {openAPIV3Schema: {type: object}}
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [mode, count, size]
              properties:
                mode: {type: string, enum: [token, disabled]}
                count: {type: integer, format: int32, default: 1}
                size:
                  anyOf: [{type: integer}, {type: string}]
                  pattern: ^[0-9]+(Mi|Gi)?$
                  x-kubernetes-int-or-string: true
                labels: {type: object, additionalProperties: {type: string}}
                pods:
                  type: array
                  items: {type: object, properties: {name: {type: string}}}
                note: {type: string, nullable: true}
                nothing: {type: object}
                anything:
                  type: object
                  properties: {known: {type: string}}
                  x-kubernetes-preserve-unknown-fields: true
"""
)
RESOURCE: dict[str, Any] = yaml.safe_load(
    """
apiVersion: ray.io/v1
kind: Small
metadata: {name: a, labels: {any: thing}}
spec:
  mode: token
  size: 4
  labels: {any: thing}
  pods: [{name: a}]
  note: null
  nothing: {}
  anything: {known: "yes", unknown: [1]}
"""
)


def accepts(schema: dict[str, Any], resource: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(resource, schema, jsonschema.Draft202012Validator)


def test_what_a_definition_accepts() -> None:
    schema = crd.accepted(SMALL, "v1")
    accepts(schema, RESOURCE)
    accepts(schema, change(RESOURCE, "spec.size", "4Gi"))
    accepts(schema, change(RESOURCE, "spec.count", 2))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("kind", "Other"),
        ("status", {}),
        ("spec.unknown", 1),
        ("spec.mode", "tokn"),
        ("spec.mode", None),
        ("spec.count", "1"),
        ("spec.size", 1.5),
        ("spec.size", "4 Gi"),
        ("spec.labels.any", 1),
        ("spec.pods.0.nam", "a"),
        ("spec.note", 1),
        ("spec.nothing.at", "all"),
        ("spec.anything.known", 1),
        ("spec", {"mode": "token"}),
    ],
)
def test_what_a_definition_refuses(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        accepts(crd.accepted(SMALL, "v1"), change(RESOURCE, path, value))


def own(**spec: Any) -> dict[str, Any]:
    """A schema of our own for the small resource, whose spec has these properties."""
    spec = {"mode": {"const": "token"}, "size": {"$ref": "#/$defs/size"}} | spec
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "spec"],
        "properties": {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": "Small"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": {"type": "object", "required": ["mode", "size"], "properties": spec},
        },
        "$defs": {"size": {"type": "string"}},
    }


def test_a_schema_that_is_narrower_does_not_differ() -> None:
    named = {"type": "object", "properties": {"any": {"type": "string"}}}
    pods = {"type": "array", "items": named | {"properties": {"name": {"type": "string"}}}}
    ours = own(labels=named, pods=pods, anything=named, note={"type": "string"})
    assert crd.differences(ours, crd.accepted(SMALL, "v1")) == []


@pytest.mark.parametrize(
    ("spec", "difference"),
    [
        ({"sise": {"type": "string"}}, ".spec.sise: unknown"),
        ({"count": {"type": "string"}}, ".spec.count: the type string"),
        ({"mode": {"const": "tokn"}}, ".spec.mode: the value tokn"),
        ({"mode": {"enum": ["token", "tokn"]}}, ".spec.mode: the value tokn"),
        ({"count": {"const": "1"}}, ".spec.count: the value 1"),
        ({"size": {"type": "number"}}, ".spec.size: the type number"),
        (
            {"labels": {"type": "object", "additionalProperties": {"type": "integer"}}},
            ".spec.labels.*: the type integer",
        ),
        (
            {"nothing": {"type": "object", "additionalProperties": {"type": "string"}}},
            ".spec.nothing.*: unknown",
        ),
        (
            {
                "pods": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"nam": {"type": "string"}}},
                }
            },
            ".spec.pods.*.nam: unknown",
        ),
    ],
)
def test_a_schema_that_allows_more_differs(spec: dict[str, Any], difference: str) -> None:
    assert crd.differences(own(**spec), crd.accepted(SMALL, "v1")) == [difference]


def test_a_schema_that_requires_less_differs() -> None:
    ours = copy.deepcopy(own())
    ours["properties"]["spec"]["required"] = ["mode"]
    assert crd.differences(ours, crd.accepted(SMALL, "v1")) == [".spec.size: required"]


def test_one_version_of_kuberay_everywhere() -> None:
    named = {
        place: re.findall(r"KubeRay (\d+\.\d+) or newer", (ROOT / place).read_text())
        for place in ("cluster/rayjob.yaml", "docs/cluster.md")
    }
    assert named == {place: [SCHEMA["x-kuberay"]["version"]] for place in named}


@pytest.fixture
def published() -> dict[str, Any]:
    """What the published definition that the user names accepts."""
    if DEFINITION not in os.environ:
        pytest.skip(f"{DEFINITION} names no file with KubeRay's definition of a RayJob")
    return crd.accepted(yaml.safe_load(Path(os.environ[DEFINITION]).read_text()), "v1")


def test_rayjob_fits_the_published_definition(published: dict[str, Any]) -> None:
    accepts(published, RAYJOB)


def test_our_schema_allows_nothing_that_the_published_definition_refuses(
    published: dict[str, Any],
) -> None:
    assert crd.differences(SCHEMA, published) == []
