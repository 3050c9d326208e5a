"""An independent checker: re-proves stored certificates from the rows and the weights alone.

It shares only the formulas of the activations, the spec and the data with the solver: the
mathematics here is derived and implemented a second time, in float64 numpy.

>>> report = raycrt.verify("runs/demo")  # the package is callable, and this is `verify_run`
>>> report.sound
True
"""

import sys
from types import ModuleType
from typing import Any

from raycrt.specs import Place, given
from raycrt.verify.checker import Checker, Finding
from raycrt.verify.report import Report, verify_run


class _Verify(ModuleType):
    def __call__(self, run: str | Place, **options: Any) -> Report:
        """`verify_run` of the directory `run`, a path or a URI."""
        return verify_run(given(run), **options)


# `raycrt.verify` names both this package and the function that Python programs call.
sys.modules[__name__].__class__ = _Verify

__all__ = ["Checker", "Finding", "Report", "verify_run"]
