"""The names of the files in a bundle, which its writer uses too (docs/bundle.md)."""

from __future__ import annotations

import re

# The version of the format.
VERSION = 1
CARD = "README.md"
INDEX = "bundle.json"
MODEL = "train/model.safetensors"
MODEL_SPEC = "train/spec.yaml"
ONNX = "model.onnx"
MANIFEST = "certificates/manifest.json"
INPUTS, LABELS = "data/inputs.npy", "data/labels.npy"
REPORT = ("report/report.md", "report/certified_accuracy.png")

REQUIRED = frozenset({CARD, INDEX, MODEL, MODEL_SPEC, MANIFEST})
OPTIONAL = frozenset({ONNX, INPUTS, LABELS, "certificates/spec.yaml", *REPORT})
_ROWS = re.compile(r"certificates/rows/[0-9A-Za-z][0-9A-Za-z_-]{0,99}\.parquet")


def belongs(name: str) -> bool:
    """Whether a bundle may hold a file of this name."""
    return name in REQUIRED or name in OPTIONAL or _ROWS.fullmatch(name) is not None
