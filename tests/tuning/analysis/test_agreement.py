"""Whether rungs are said to be honest when they are, and only then."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from raycrt.tuning.analysis import agreement
from raycrt.tuning.analysis.study import TrialRecord
from tests.tuning.analysis.test_study import record


def trials(count: int, rung: Callable[[int], float]) -> list[TrialRecord]:
    return [
        record(n, n / count, 0.9, rungs={3: rung(n), 27: n / count}, epochs=27)
        for n in range(count)
    ]


def test_tau_is_one_where_a_rung_keeps_the_order_and_minus_one_where_it_turns_it() -> None:
    kept = agreement.agreements(trials(10, lambda n: n / 20))
    assert list(kept) == [3]
    assert kept[3].tau == pytest.approx(1)
    turned = agreement.agreements(trials(10, lambda n: -n))[3]
    assert turned.tau == pytest.approx(-1)
    assert (kept[3].verdict, turned.verdict) == (agreement.AGREES, agreement.WEAK)


def test_an_interval_holds_its_tau_and_shrinks_with_more_trials() -> None:
    widths = []
    for count in (8, 16, 64):
        shuffled = random.Random(0).sample(range(count), count)
        found = agreement.agreements(trials(count, lambda n, s=shuffled: n + s[n] / 2))[3]
        assert found.tau is not None
        assert found.interval is not None
        low, high = found.interval
        assert -1 <= low < found.tau < high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_the_interval_covers_the_tau_of_random_orders_as_often_as_it_says() -> None:
    order, covered = random.Random(1), 0
    for _ in range(400):
        drawn = [order.random() for _ in range(12)]
        found = agreement.agreements(trials(12, drawn.__getitem__))[3]
        assert found.interval is not None
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def test_a_rung_that_all_pass_alike_is_weak_and_of_few_trials_nothing_is_said() -> None:
    [same] = agreement.agreements(trials(9, lambda n: 0.5)).values()
    assert (same.tau, same.verdict) == (None, agreement.WEAK)
    few = trials(7, lambda n: -n)
    found = agreement.agreements(few)[3]
    assert (found.tau, found.interval, found.verdict) == (None, None, agreement.TOO_FEW)
    assert agreement.sentence(found).endswith("agrees with the end: 7 of the 8 needed")
    assert agreement.warnings(few) == []


def test_what_was_pruned_does_not_count() -> None:
    ended = trials(9, lambda n: n / 9)
    stopped = [record(9, 0.9, 0.9, state="pruned", rungs={3: 0.9}, epochs=3)]
    assert agreement.agreements(ended + stopped) == agreement.agreements(ended)


def test_a_weak_rung_is_warned_of() -> None:
    [said] = agreement.warnings(trials(9, lambda n: (n * 5) % 9))
    assert said.startswith("warning: the rung at epoch 3 ")
    assert "9 trials" in said
    assert agreement.warnings(trials(9, lambda n: n / 9)) == []
