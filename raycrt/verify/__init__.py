"""An independent checker: re-proves stored certificates from the rows and the weights alone.

It shares only the formulas of the activations, the spec and the data with the solver: the
mathematics here is derived and implemented a second time, in float64 numpy.

>>> from raycrt.verify import verify_run
>>> report = verify_run(Path("runs/demo"))
>>> report.sound
True
"""

from raycrt.verify.checker import Checker, Finding
from raycrt.verify.report import Report, verify_run

__all__ = ["Checker", "Finding", "Report", "verify_run"]
