"""A function of the user's that a spec names: `module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
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
        made = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{key} must name a module that can be imported, but {error}, nor in {directory}"
        ) from None
    except Exception as error:  # Whatever the module's own code raises.
        said = " ".join(str(getattr(error, "msg", error)).split())
        raise InvalidInput(
            f"{key} must name a module that can be imported, but {_place(error)} raises "
            f"{type(error).__name__}: {said:.200}"
        ) from None
    if not hasattr(made, attribute):
        raise InvalidInput(f"{key} must name a function of {module}, but it has no {attribute!r}")
    found = getattr(made, attribute)
    if not callable(found):
        raise InvalidInput(
            f"{key} must name a function of {module}, but {attribute!r} is {type(found).__name__}"
        )
    function: Callable[..., Any] = found
    return function


def _place(error: Exception) -> str:
    """File and line of an error: of the text that is no Python, or of the call that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"line {error.lineno} of {error.filename}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {frame.lineno} of {frame.filename}"
