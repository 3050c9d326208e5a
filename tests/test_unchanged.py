"""Nothing that is computed has changed, to the last bit, since it was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import unchanged


@pytest.fixture(scope="module")
def recorded() -> dict[str, str]:
    found = unchanged.recorded()
    if found is None:
        pytest.skip("nothing is recorded of this machine's arithmetic: python -m tests.unchanged")
    return found


@pytest.mark.parametrize("case", unchanged.CASES)
def test_what_is_computed(case: str, recorded: dict[str, str]) -> None:
    assert unchanged.computed(case) == recorded[case]


@pytest.mark.cluster
def test_what_a_search_draws_and_measures(
    tmp_path: Path, recorded: dict[str, str], local_ray: None
) -> None:
    assert unchanged.searched(tmp_path / "search") == recorded["search"]
