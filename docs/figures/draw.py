"""Draws the figures of theory.md and tightness.md beside this file: python docs/figures/draw.py

Every curve is computed: margins by a network, bounds and radii by raycrt.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import nn

import raycrt
from raycrt.bounds.curvature import margin_curvature

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#d1603d", "#3a7d44", "#8a8a8a"
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "raycrt",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def main(out: Path = HERE) -> None:
    with plt.rc_context(STYLE):
        for name, draw in {"parabola": parabola, "balls": balls, "tightness": tightness}.items():
            figure = draw()
            figure.savefig(out / f"{name}.svg", metadata={"Date": None}, facecolor="white")
            plt.close(figure)


def parabola() -> plt.Figure:
    """A margin along a line, and the parabolas below it at two points."""
    softplus = nn.Softplus()
    x = torch.linspace(-0.6, 2.5, 200, dtype=torch.float64, requires_grad=True)

    def margin(x: torch.Tensor) -> torch.Tensor:
        return 1.25 - softplus(3 * x - 3.6) + 0.45 * softplus(-2 * x + 1.5)

    f = margin(x)
    [slope] = torch.autograd.grad(f.sum(), x, create_graph=True)
    [bend] = torch.autograd.grad(slope.sum(), x)
    m = -float(bend.min())
    figure, axes = plt.subplots(figsize=(6.4, 3.1))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(x.detach(), f.detach(), color="black", label="margin f")
    radii = []
    for at, colour, name in ((0.0, BLUE, "at the image"), (None, ORANGE, "at a witness")):
        # The witness is where the line meets the boundary, a little before it.
        at = _root(x, f) - 0.04 if at is None else at
        point = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = margin(point)
        [g] = torch.autograd.grad(value, point)
        below = value + g * (x - point) - m / 2 * (x - point) ** 2
        shown = below.detach() > -1.3
        axes.plot(x.detach()[shown], below.detach()[shown], color=colour, linewidth=1.1)
        radii.append(at + _radius(value.item(), g.item(), m))
        axes.plot([at], [value.item()], "o", color=colour, markersize=4)
        axes.annotate(
            f"radius proved {name}",
            (radii[-1], 0),
            (radii[-1] + 0.12, 0.75 if at else 1.3),
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7},
        )
    assert radii[0] < radii[1] <= _root(x, f)
    axes.set(xlabel="distance from the image", ylim=(-1.3, 2.6), xlim=(-0.6, 2.5))
    axes.legend(frameon=False, loc="upper right")
    return figure


def _root(x: torch.Tensor, f: torch.Tensor) -> float:
    return x[torch.nonzero(f < 0)[0, 0]].item()


def _radius(f: float, g: float, m: float) -> float:
    """Where the parabola with value f and slope g meets zero."""
    return 2 * f / (abs(g) + np.sqrt(g * g + 2 * m * f))


def balls() -> plt.Figure:
    """Certified balls of a network in two dimensions, trained with and without curvature."""
    points, labels = make_moons(400, noise=0.08, random_state=0)
    rows = (torch.tensor(points, dtype=torch.float32), torch.tensor(labels))
    trained = {
        "standard": {"objective": "standard"},
        "crt-all": {"objective": "crt-all", "radius": 0.2, "gamma": 0.001},
    }
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.0), sharey=True)
    for axes, (name, options) in zip(panels, trained.items(), strict=True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 2))
        network = raycrt.train(
            model, rows, epochs=300, learning_rate=0.02, batch_size=128, **options
        )
        shown = rows[0][:60]
        found = raycrt.certify(network, shown)
        side = np.linspace(-1.7, 2.7, 90), np.linspace(-1.3, 1.8, 90)
        grid = torch.tensor(np.stack(np.meshgrid(*side), -1).reshape(-1, 2), dtype=torch.float32)
        logits = network(grid).detach().numpy()
        margin = (logits[:, 1] - logits[:, 0]).reshape(90, 90)
        axes.contourf(*side, margin > 0, levels=1, colors=["#eaf1f6", "#fbeee9"])
        axes.contour(*side, margin, levels=[0], colors="black", linewidths=1)
        for (a, b), radius, label in zip(shown.numpy(), found.radius, rows[1], strict=False):
            colour = ORANGE if label else BLUE
            axes.add_patch(plt.Circle((a, b), float(radius), fill=False, color=colour, lw=0.6))
            axes.plot([a], [b], ".", color=colour, markersize=3)
        curvature = float(margin_curvature(network.in_float64()).max())
        axes.set(aspect="equal", title=f"{name}: m = {curvature:.0f}", xlim=(-1.7, 2.7))
        axes.set(ylim=(-1.3, 1.8), xticks=[], yticks=[])
        print(f"{name}: mean radius {float(found.radius.mean()):.3f}")
    return figure


def tightness() -> plt.Figure:
    """The table of tightness.md: mean certified radius by bound and number of layers."""
    page = (HERE.parent / "tightness.md").read_text()
    table = re.findall(r"^\| (\d) \| [\d.]+ \| ([^|]+) \| [\d.]+ \| ([\d.]+) \|$", page, re.M)
    figure, axes = plt.subplots(figsize=(6.4, 3.1))
    marks = {
        "paper": (GREY, "s-"),
        "compositional": (GREEN, "^-"),
        "averaged operators": (BLUE, "v-"),
        "minimum (region: global)": ("black", "o-"),
        "on the ball (region: local)": (ORANGE, "D-"),
    }
    for bound, (colour, style) in marks.items():
        drawn = [(int(layers), float(radius)) for layers, name, radius in table if name == bound]
        assert len(drawn) == 5
        axes.plot(*zip(*drawn, strict=True), style, color=colour, label=bound, markersize=4)
    axes.set(xlabel="layers", ylabel="mean certified radius", xticks=range(2, 7), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
