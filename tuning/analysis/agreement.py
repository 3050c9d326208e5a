"""Agreement of the ranking of trials at a rung with that at their end, which justifies pruning.

A rung and the end agree on the better of two trials with probability (1 + tau) / 2, where tau is
Kendall's: at 1 the order is the same, at 0 the two are unrelated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau

from raycrt.evaluation.intervals import Z95
from raycrt.tuning.analysis.study import TrialRecord

# A tau of 0.5 keeps three of four pairs in order.
LEAST = 0.5
# With 7 trials the interval of a tau below 0.63 reaches 0.
FEWEST = 8
AGREES, WEAK, TOO_FEW = "agrees", "weak", "too few trials to tell"
_SENTENCES = {
    AGREES: "agrees with the end",
    WEAK: "agrees only weakly with the end",
    TOO_FEW: "too few trials to tell whether it agrees with the end",
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Kendall's tau (tau-b) of a rung with the end over `trials` trials, and its 95 % interval.

    The interval is that of Fieller, Hartley and Pearson (1957): the inverse hyperbolic tangent of
    tau is nearly normal with variance 0.437 / (trials - 4). Both are None with fewer than eight
    trials, of which no number says anything, and where all are equal at the rung or at the end.
    """

    trials: int
    tau: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """`agrees`: tau is at least 0.5 and its interval lies above 0. `weak`: either fails.
        `too few trials to tell`: fewer than 8."""
        if self.trials < FEWEST:
            return TOO_FEW
        if self.tau is None or self.interval is None:
            return WEAK
        return AGREES if self.tau >= LEAST and self.interval[0] > 0 else WEAK


def agreements(records: Sequence[TrialRecord]) -> dict[int, Agreement]:
    """The agreement of each rung with the end, over the trials that ran to the end.

    Pruned trials are missing and survivors are similar, so tau is biased low; run with
    `search.scheduler: none` for an unbiased estimate.
    """
    ended = [trial for trial in records if trial.complete]
    found: dict[int, Agreement] = {}
    for rung in sorted({epoch for trial in ended for epoch in trial.rungs}):
        if rung != max(trial.epochs for trial in ended):
            pairs = [(t.rungs[rung], t.certified) for t in ended if rung in t.rungs]
            found[rung] = _agreement(pairs)
    return found


def warnings(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence for each rung whose agreement with the end is weak."""
    return [
        f"warning: the rung at epoch {rung} orders trials only weakly like their end "
        f"({words(found)}): pruning by it may be chance; move search.rungs later, raise "
        "search.rung_rows or set search.scheduler=none"
        for rung, found in agreements(records).items()
        if found.verdict == WEAK
    ]


def sentence(found: Agreement) -> str:
    """The verdict, with tau, its interval and the number of trials."""
    said = _SENTENCES[found.verdict]
    if found.verdict == TOO_FEW:
        return f"{said}: {found.trials} of the {FEWEST} needed"
    return f"{said}, {words(found)}"


def words(found: Agreement) -> str:
    """Tau, its interval and the number of trials, as text."""
    if found.tau is None or found.interval is None:
        return f"no tau, {found.trials} trials"
    low, high = found.interval
    return f"Kendall tau {found.tau:.2f} (95 %: {low:.2f} to {high:.2f}), {found.trials} trials"


def _agreement(pairs: list[tuple[float, float]]) -> Agreement:
    count = len(pairs)
    if count < FEWEST:
        return Agreement(trials=count, tau=None, interval=None)
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    if not math.isfinite(tau):
        return Agreement(trials=count, tau=None, interval=None)
    return Agreement(trials=count, tau=tau, interval=_interval(tau, count))


def _interval(tau: float, count: int) -> tuple[float, float]:
    # A perfect order, whose interval would be a point, is lowered by half a swapped pair.
    most = 1 - 2 / (count * (count - 1))
    centre = math.atanh(max(-most, min(most, tau)))
    half = Z95 * math.sqrt(0.437 / (count - 4))
    return min(tau, math.tanh(centre - half)), max(tau, math.tanh(centre + half))
