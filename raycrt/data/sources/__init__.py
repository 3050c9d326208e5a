"""Sources of data sets, one file for each.

Every file in this folder is imported here, so that adding a file adds a source.
"""

from __future__ import annotations

import importlib
import pkgutil

from raycrt.data.sources.source import SOURCES, Rows, Source, existing
from raycrt.errors import InvalidInput, nearest
from raycrt.specs import DataSpec
from raycrt.system.places.storage import Place

__all__ = ["SOURCES", "Rows", "Source", "detect", "kind", "of"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")


def kind(source: str) -> type[Source]:
    """The class that reads `source`: a kind, kind:NAME, or module:function."""
    name, colon, _ = source.partition(":")
    if name in SOURCES and name != "function" and (not colon or SOURCES[name].named):
        return SOURCES[name]
    if colon and name not in SOURCES:
        return SOURCES["function"]
    known = [k for k in SOURCES if k != "function"]
    raise InvalidInput(
        f"data.source must be one of {sorted(known)}, torchvision:NAME, huggingface:NAME or "
        f"module:function{nearest(source, known)}, but got {source!r}"
    )


def of(spec: DataSpec) -> Source:
    """The source that `spec` names."""
    return kind(str(spec.source))(spec)


def detect(path: Place) -> str:
    """The kind of the data set at `path`, by the names of its files."""
    existing(path)
    try:
        found = sorted(name for name, source in SOURCES.items() if source.recognises(path))
    except OSError as error:
        raise InvalidInput(f"the files in {path} must be readable: {error}") from None
    if len(found) != 1:
        raise InvalidInput(
            f"data.source must name the kind of {path}, which by its files is "
            f"{' or '.join(found) or f'none of {sorted(SOURCES)}'}"
        )
    return found[0]
