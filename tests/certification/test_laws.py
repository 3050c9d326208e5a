"""Every option of a certifier, by the same laws."""

import pytest

from tests.certification.laws import CertificateLaws

OPTIONS = {
    "closed form": {"steps": 0},
    "solved": {},
    "on balls": {"region": "local", "radii": (0.1, 0.3)},
    "as float32 computes it": {"deployment": "float32"},
    "without the runner-up": {"runner_up": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestEvery(CertificateLaws):
    pass
