"""A function of the user's that a spec names: `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from raycrt.errors import InvalidInput


def imported(name: str, key: str, directory: str) -> Callable[..., Any]:
    """The function `name` = `module:function`, its module imported from `directory` or from where
    Python finds it. `InvalidInput`, with the `key` of the spec, where it is not one."""
    module, _, attribute = name.partition(":")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{key} must name a module that can be imported, but {error}, nor in {directory}"
        ) from None
    except AttributeError:
        raise InvalidInput(
            f"{key} must name a function of {module}, but it has no {attribute!r}"
        ) from None
    if not callable(found):
        raise InvalidInput(
            f"{key} must name a function of {module}, but {attribute!r} is {type(found).__name__}"
        )
    function: Callable[..., Any] = found
    return function
