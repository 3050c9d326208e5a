"""Intervals of differences: Newcombe's own examples, and how often they hold the truth."""

import numpy as np
import pytest

from raycrt.evaluation.intervals import difference, paired_difference, verdict


def test_the_interval_of_two_independent_shares_is_newcombes():
    """56 of 70 against 48 of 80, his example: 0.0524 to 0.3339."""
    found = difference(56 / 70, 48 / 80, 70, 80)
    assert found == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert verdict(*found) == "better"
    assert verdict(*difference(48 / 80, 56 / 70, 80, 70)) == "worse"
    assert verdict(*difference(0.5, 0.5, 80, 80)) == "cannot be told apart"


def test_the_interval_of_two_paired_shares_is_newcombes():
    """36, 12, 2 and 0 of 50, his example: 0.0569 to 0.3404."""
    assert paired_difference(36, 12, 2, 0) == pytest.approx([0.0569, 0.3404], abs=1e-4)
    low, high = paired_difference(36, 2, 12, 0)
    assert (-high, -low) == pytest.approx([0.0569, 0.3404], abs=1e-4)


def test_rows_that_both_get_right_or_wrong_make_the_paired_interval_narrower():
    apart = difference(0.8, 0.77, 1000, 1000)
    low, high = paired_difference(760, 40, 10, 190)
    assert apart[0] < 0 < low < 0.03 < high < apart[1]


@pytest.mark.parametrize("counts", [(7, 0, 0, 0), (0, 0, 0, 7), (0, 7, 0, 0), (1, 0, 0, 0)])
def test_rows_that_all_agree_have_an_interval_within_one(counts):
    low, high = paired_difference(*counts)
    assert -1 <= low <= (counts[1] - counts[2]) / sum(counts) <= high <= 1 and low < high


def test_the_paired_interval_holds_the_truth_as_often_as_it_says():
    shares = (0.7, 0.1, 0.06, 0.14)
    drawn = np.random.default_rng(0).multinomial(300, shares, 2000).tolist()
    held = [low <= 0.04 <= high for low, high in (paired_difference(*each) for each in drawn)]
    assert 0.93 <= np.mean(held) <= 0.98
