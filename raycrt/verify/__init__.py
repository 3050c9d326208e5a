"""An independent checker: re-proves stored certificates from the rows and the weights alone.

It shares with the solver the formulas of the activations, the spec and the data, and nothing else:
the mathematics here is numpy in float64, derived and written a second time.

>>> from raycrt.verify import verify_run
>>> report = verify_run(Path("runs/demo"))
>>> report.sound
True
"""

from raycrt.verify.checker import Checker, Finding
from raycrt.verify.report import Report, verify_run

__all__ = ["Checker", "Finding", "Report", "verify_run"]
