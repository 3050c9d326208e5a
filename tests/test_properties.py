"""What must hold of any network and image: certified below attacked, checked, curved, cut up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raycrt import Certifier, attack
from raycrt.activations import ACTIVATIONS
from raycrt.bounds.curvature import margin_curvature
from raycrt.networks.network import Network
from raycrt.verify import verify_run
from tests.models import random_network
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run

# The same examples every time, and few.
settings.register_profile("raycrt", deadline=None, derandomize=True, max_examples=6)
settings.load_profile("raycrt")

SEEDS = st.integers(0, 2**31 - 1)
NAMES = st.sampled_from(sorted(ACTIVATIONS))


@dataclass(frozen=True)
class Case:
    network: Network
    images: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed, features = draw(SEEDS), draw(st.integers(1, 8))
    network = random_network(
        draw(st.integers(2, 4)),
        features=features,
        width=draw(st.integers(1, 12)),
        classes=draw(st.integers(2, 6)),
        name=draw(NAMES),
        gain=draw(st.floats(0.3, 4)),
        seed=seed,
    )
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    draws = torch.Generator().manual_seed(seed)
    return Case(network, scale * torch.randn(10, features, generator=draws))


@given(cases())
def test_no_attack_lies_inside_a_radius(case: Case) -> None:
    found = Certifier(case.network)(case.images)
    assert (found.radius <= attack(case.network, case.images).distance).all()
    assert (found.radius <= found.radius_runner_up).all()


@given(cases(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_neither_batches_nor_order_change_a_row(case: Case, size: int, shuffled) -> None:
    order = torch.tensor(shuffled.sample(range(10), 10))
    certifier = Certifier(case.network)
    whole = certifier(case.images)
    parts = Certifier(case.network, batch_size=size)(case.images[order])
    assert torch.equal(parts.prediction, whole.prediction[order])
    assert torch.equal(parts.status, whole.status[order])
    torch.testing.assert_close(parts.radius, whole.radius[order], rtol=1e-5, atol=1e-7)


@given(cases())
def test_no_hessian_is_larger_than_the_curvature(case: Case) -> None:
    network = case.network.double()
    bound = margin_curvature(network)

    def margin(x: Tensor, y: int, t: int) -> Tensor:
        logits = network(x[None])[0]
        return logits[y] - logits[t]

    for y, t in ((0, 1), (1, 0)):
        of_margin = torch.func.hessian(lambda x, y=y, t=t: margin(x, y, t))
        hessians = torch.func.vmap(of_margin)(case.images.double()).detach()
        worst = -float(torch.linalg.eigvalsh(hessians)[:, 0].min())
        # An exact Hessian is rounded too, where margins hardly bend.
        assert worst <= float(bound[y, t]) * (1 + 1e-12) + 1e-13


@given(st.integers(2, 3), NAMES, SEEDS, st.floats(0.5, 2.5), st.sampled_from(["global", "local"]))
def test_the_checker_accepts_what_is_proved_and_refuses_one_per_cent_more(
    depth: int, name: str, seed: int, gain: float, region: str
) -> None:
    with TemporaryDirectory() as place:
        run = write_run(
            Path(place) / "run",
            spec_of(depth, name, rows=6, width=8, region=region, at=(0.5, 1.0)),
            gain=gain,
            seed=seed,
        )
        report = verify_run(run)
        assert report.sound, report.findings[:3]
        rows = rows_of(run).to_pylist()
        for row in rows:
            for key in ("radius", "radius_runner_up"):
                row[key] *= 1.01
        rewrite_rows(run, rows)
        proved = sum(row["status"] == "certified" for row in rows)
        assert verify_run(run).failed == proved
