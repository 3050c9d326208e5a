"""The charts of the page of a search, as Vega-Lite specifications made by Altair.

Every measured share has its 95 % interval, every trial is drawn, and an axis contains the intervals
on it, so that a difference looks large only if it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from raycrt.evaluation.page.charts import Chart, finished
from raycrt.specs.search import Domain

_COMPLETE, _PRUNED = "complete", "pruned: at its last rung"
_BEST, _FRONT, _OTHERS = "best so far", "matched by no other in both", "other trials"
# Each with its colour and its shape, that of a line as a path.
_STYLES = {
    _COMPLETE: ("var(--certified)", "circle"),
    _PRUNED: ("var(--clean)", "cross"),
    _BEST: ("var(--attacked)", "M-1,-0.15H1V0.15H-1Z"),
    _FRONT: ("var(--certified)", "circle"),
    _OTHERS: ("var(--clean)", "circle"),
}
_MOST_TICKS = 12
# Pixels between the frame and the outermost marks.
_PADDING = 12
Entries = Sequence[Mapping[str, Any]]


def history(trials: Entries, best: Entries, label: str) -> Chart:
    """`certified` of each trial by number, and the best so far."""
    points = _points(trials)
    names = [*_kinds(points), *([_BEST] if best else [])]
    base = alt.Chart(alt.Data(values=points))
    ticks = alt.Axis(tickMinStep=1)
    x, scale = alt.X("number:Q", title="trial", axis=ticks, scale=_padded()), _around(points)
    steps = [{"number": each["number"], "best": 100 * each["best"]} for each in best]
    line = (
        alt.Chart(alt.Data(values=steps))
        .transform_calculate(trials=f"'{_BEST}'")
        .mark_line(interpolate="step-after")
        .encode(x=x, y=alt.Y("best:Q", scale=scale, title=label), color=_styled("color", names))
    )
    return finished(_with_intervals(base, x, scale, label, names) + line)


def slices(trials: Entries, path: str, domain: Domain, label: str) -> Chart:
    """`certified` of each trial that has the parameter, by its value."""
    points = [point for point in _points(trials) if path in point["params"]]
    values = [{**point, "value": point["params"][path]} for point in points]
    base = alt.Chart(alt.Data(values=values))
    x, scale = axis(domain, path), _around(points)
    return finished(_with_intervals(base, x, scale, label, _kinds(points)), 220)


def importances(found: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Shares of the parameters with their intervals, of those that have one."""
    values = [
        {
            "parameter": path,
            "share": each["share"],
            "low": each["interval"][0],
            "high": each["interval"][1],
        }
        for path, each in found.items()
        if each["interval"] is not None
    ]
    base = alt.Chart(alt.Data(values=values))
    y = alt.Y("parameter:N", sort=None, title=None, axis=alt.Axis(labelLimit=220))
    x = alt.X("share:Q", title="share of all importances", scale=alt.Scale(domain=[0, 1]))
    tips = ["parameter:N", *(alt.Tooltip(f"{k}:Q", format=".2f") for k in ("share", "low", "high"))]
    bars = base.mark_bar(color="var(--certified)", opacity=0.9).encode(x=x, y=y, tooltip=tips)
    rules = base.mark_rule(color="var(--ink)").encode(x=alt.X("low:Q", title=""), x2="high:Q", y=y)
    return finished(bars + rules, 40 + 30 * len(values))


def pareto(trials: Entries, front: Entries, label: str) -> Chart:
    """Certified against clean accuracy: all complete trials, the front with intervals."""
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = [{**_shares(t), "number": t["number"], "trials": _FRONT} for t in front]
    ahead = {trial["number"] for trial in front}
    points = [
        {**_shares(t), "number": t["number"], "trials": _OTHERS}
        for t in complete
        if t["number"] not in ahead
    ]
    colour = _styled("color", [_FRONT, _OTHERS] if points else [_FRONT])
    ends = [each[key] for each in best for key in ("clean_low", "clean_high")]
    ends += [each["clean"] for each in points]
    across_scale, scale = _domain(min(ends), max(ends)), _around([*points, *best])
    x = alt.X("clean:Q", title="clean, %", scale=across_scale)
    y = alt.Y("certified:Q", title=label, scale=scale)
    others = (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, opacity=0.7)
        .encode(x=x, y=y, color=colour, tooltip=["number:N", told("certified"), told("clean")])
    )
    base = alt.Chart(alt.Data(values=best))
    upright = base.mark_rule(color="var(--certified)", opacity=0.5).encode(
        x=x, y=alt.Y("low:Q", title=label, scale=scale), y2="high:Q"
    )
    across = base.mark_rule(color="var(--certified)", opacity=0.5).encode(
        x=alt.X("clean_low:Q", title="clean, %", scale=across_scale), x2="clean_high:Q", y=y
    )
    line = base.mark_line().encode(x=x, y=y, color=colour)
    tips = base.mark_point(filled=True, size=45).encode(
        x=x, y=y, color=colour, tooltip=["number:N", told("certified"), told("clean")]
    )
    return finished(others + upright + across + line + tips)


def rungs(trials: Entries, label: str) -> Chart:
    """`certified` of each trial at each rung and at its end."""
    values = []
    for trial in trials:
        state = _COMPLETE if trial["state"] == "complete" else _PRUNED
        steps = {int(epoch): share for epoch, share in trial["rungs"].items()}
        if trial["state"] == "complete":
            steps[trial["epochs"]] = trial["certified"]
        values += [
            {"number": trial["number"], "epoch": e, "certified": 100 * share, "trials": state}
            for e, share in sorted(steps.items())
        ]
    return finished(
        alt.Chart(alt.Data(values=values))
        .mark_line(point=True, opacity=0.6)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1), scale=_padded()),
            y=alt.Y("certified:Q", title=label, scale=_padded()),
            detail="number:N",
            color=_styled("color", _kinds(values)),
            tooltip=["number:N", "epoch:Q", told("certified")],
        )
    )


def cost(trials: Entries) -> Chart:
    """Seconds of each trial."""
    values = [
        {
            "number": trial["number"],
            "seconds": trial["seconds"],
            "epochs": trial["epochs"],
            "trials": trial["state"],
        }
        for trial in trials
    ]
    states = list(dict.fromkeys(value["trials"] for value in values))
    colours = {"complete": "var(--certified)", "pruned": "var(--clean)", "failed": "var(--bad)"}
    scale = alt.Scale(domain=states, range=[colours.get(s, "var(--attacked)") for s in states])
    legend = None if states == ["complete"] else alt.Legend(symbolSize=100)
    return finished(
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X("number:O", title="trial", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("seconds:Q", title="seconds"),
            color=alt.Color("trials:N", title=None, scale=scale, legend=legend),
            tooltip=["number:O", "trials:N", "epochs:Q", alt.Tooltip("seconds:Q", format=".1f")],
        ),
        200,
    )


def finals(finalists: Entries, label: str) -> Chart:
    """Each training of the finals, and the means, with their intervals."""
    values = []
    for each in finalists:
        name = f"trial {each['number']}"
        values.append({**_shares(each), "trial": name, "which": "mean over the seeds"})
        values += [{**_shares(r), "trial": name, "which": "one seed"} for r in each["runs"]]
    base = alt.Chart(alt.Data(values=values))
    y = alt.Y("trial:N", sort=[f"trial {each['number']}" for each in finalists], title=None)
    offset = alt.YOffset("which:N", sort=["mean over the seeds", "one seed"])
    colours = alt.Scale(
        domain=["mean over the seeds", "one seed"], range=["var(--certified)", "var(--clean)"]
    )
    scale = _around(values)
    x = alt.X("certified:Q", title=label, scale=scale)
    legend = alt.Legend(symbolSize=100, symbolOpacity=1)
    colour = alt.Color("which:N", title=None, scale=colours, legend=legend)
    points = base.mark_point(filled=True, size=80).encode(
        x=x, y=y, yOffset=offset, color=colour, tooltip=["trial:N", "which:N", told("certified")]
    )
    rules = base.mark_rule().encode(
        x=alt.X("low:Q", title=label, scale=scale), x2="high:Q", y=y, yOffset=offset, color=colour
    )
    return finished(rules + points, 60 + 50 * len(finalists))


def _points(trials: Entries) -> list[dict[str, Any]]:
    """The trials that were measured, in per cent."""
    kinds = {"complete": _COMPLETE, "pruned": _PRUNED}
    return [
        {
            **_shares(trial),
            "number": trial["number"],
            "params": trial["params"],
            "trials": kinds[trial["state"]],
        }
        for trial in trials
        if trial["state"] in kinds and trial["rows"]
    ]


def _shares(entry: Mapping[str, Any]) -> dict[str, float]:
    low, high = entry["interval"]
    clean_low, clean_high = entry["clean_interval"]
    found = {"certified": entry["certified"], "low": low, "high": high}
    found |= {"clean": entry["clean"], "clean_low": clean_low, "clean_high": clean_high}
    return {key: 100 * share for key, share in found.items()}


def _with_intervals(
    base: alt.Chart, x: alt.X, scale: alt.Scale, label: str, names: Sequence[str]
) -> alt.LayerChart:
    y = alt.Y("certified:Q", title=label, scale=scale)
    bars = base.mark_rule(opacity=0.45).encode(
        x=x, y=alt.Y("low:Q", title=label, scale=scale), y2="high:Q", color=_styled("color", names)
    )
    tips = ["number:N", *map(told, ("certified", "low", "high", "clean"))]
    points = base.mark_point(filled=True, size=45).encode(
        x=x, y=y, color=_styled("color", names), shape=_styled("shape", names), tooltip=tips
    )
    return bars + points


def searches(entries: Mapping[str, Mapping[str, Any]], label: str) -> Chart:
    """The share of each search by its name, with its interval."""
    values = [{**_shares(entry), "search": name} for name, entry in entries.items()]
    base = alt.Chart(alt.Data(values=values))
    y = alt.Y("search:N", sort=list(entries), title=None, axis=alt.Axis(labelLimit=160))
    scale = _around(values)
    rules = base.mark_rule(color="var(--certified)").encode(
        x=alt.X("low:Q", title=label, scale=scale), x2="high:Q", y=y
    )
    points = base.mark_point(filled=True, size=80, opacity=1, color="var(--certified)").encode(
        x=alt.X("certified:Q", title=label, scale=scale),
        y=y,
        tooltip=["search:N", *map(told, ("certified", "low", "high", "clean"))],
    )
    return finished(rules + points, 60 + 30 * len(values))


def _kinds(points: Entries) -> list[str]:
    """The kinds of trials that occur among some points."""
    return [kind for kind in (_COMPLETE, _PRUNED) if any(p["trials"] == kind for p in points)]


def _styled(channel: str, names: Sequence[str]) -> Any:
    """Colours or shapes of the `names` in the field `trials`, with a legend of these alone; where
    all trials are complete there is nothing to tell apart."""
    which = ("color", "shape").index(channel)
    scale = alt.Scale(domain=list(names), range=[_STYLES[name][which] for name in names])
    legend = alt.Legend(symbolSize=100, symbolOpacity=1)
    made = (alt.Color, alt.Shape)[which]
    return made(
        "trials:N", title=None, scale=scale, legend=legend if names != [_COMPLETE] else None
    )


def _around(points: Entries) -> alt.Scale:
    """A scale that contains all intervals of `certified`."""
    low = min((point["low"] for point in points), default=0.0)
    high = max((point["high"] for point in points), default=100.0)
    return _domain(low, high)


def _domain(low: float, high: float) -> alt.Scale:
    room = max(0.05 * (high - low), 0.1)
    return alt.Scale(domain=[low - room, high + room], nice=False)


def _padded() -> alt.Scale:
    """A scale as wide as what is on it, and some pixels."""
    return alt.Scale(nice=False, zero=False, padding=_PADDING)


def told(field: str) -> alt.Tooltip:
    """A share in percent under the pointer."""
    return alt.Tooltip(f"{field}:Q", format=".2f")


def axis(domain: Domain, title: str, field: str = "value", kind: Any = alt.X) -> Any:
    """The axis of a searched parameter, as wide as its `domain`."""
    if domain.choices is not None:
        return kind(f"{field}:N", title=title, sort=list(map(str, domain.choices)))
    low, high = domain.low, domain.high
    scale = alt.Scale(
        type="log" if domain.log else "linear", domain=[low, high], nice=False, padding=_PADDING
    )
    ticks = alt.Axis()
    if isinstance(low, int) and isinstance(high, int) and high - low <= _MOST_TICKS:
        ticks = alt.Axis(values=list(range(low, high + 1)), format="d")
    return kind(f"{field}:Q", title=title, scale=scale, axis=ticks)
