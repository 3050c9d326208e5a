"""The spec in an untrusted directory, read in bounded time and memory."""

from __future__ import annotations

import yaml

from raycrt.errors import InvalidInput, require
from raycrt.specs import Place, Spec

SPEC = "spec.yaml"
_BYTES = 2**20
# Deepest nesting: sums of affine maps in sums of affine maps have three levels each.
_DEPTH = 64


def read_spec(directory: Place) -> Spec:
    """The `spec.yaml` of a directory: at most a megabyte of YAML without aliases and tags.

    Aliases let a short text stand for a tree of any size, and tags have their own constructors.
    Raises `InvalidInput` for anything else.
    """
    file = directory / SPEC
    if file.is_file():
        size = file.stat().st_size
        require(size <= _BYTES, f"{SPEC} <= {_BYTES} bytes", file=str(file), bytes=size)
        try:
            depth = 0
            for event in yaml.parse(file.read_text("utf-8"), yaml.SafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                plain = not isinstance(event, yaml.AliasEvent) and not getattr(event, "tag", None)
                require(
                    plain and depth <= _DEPTH,
                    f"a spec is plain YAML, {_DEPTH} levels deep at most",
                    file=str(file),
                )
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidInput(f"{file} must be YAML in UTF-8: {reason}") from None
    try:
        return Spec.load(directory)
    except InvalidInput as error:
        raise InvalidInput(f"{str(error)[:300]}, in {file}") from None
    except ValueError as error:
        raise InvalidInput(f"{file} must be YAML: {str(error)[:200]}") from None
