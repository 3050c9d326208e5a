"""The solver says how many steps it took for each margin and why it stopped."""

import torch

from raycrt import Certifier
from raycrt.certification import solver
from raycrt.certification.solver import Stop
from raycrt.margins.evaluation import MarginEvaluator
from raycrt.margins.images import margins_at_images
from raycrt.margins.tolerances import TOLERANCES
from tests.models import random_network


def _solved(steps, enough):
    batch = Certifier(random_network(2, gain=1.5)).batch
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    margins = margins_at_images(batch.prepared, x, batch.curvature, batch.masked, batch.constant)
    row, target = torch.arange(40), margins.runner_up
    m = margins.m[row, target]
    evaluator = MarginEvaluator.of(batch.prepared, margins, row, target, m)
    enough = torch.full_like(m, enough)
    return solver.solve(
        evaluator.start(enough),
        evaluator.estimate,
        m,
        enough=enough,
        steps=steps,
        settled=TOLERANCES.settled,
        tolerances=TOLERANCES,
    )


def test_a_radius_that_is_enough_takes_no_step():
    found = _solved(60, 0.0)
    assert (found.stop == Stop.ENOUGH).all() and (found.steps == 0).all()


def test_margins_stop_one_by_one_before_the_steps_run_out():
    found = _solved(60, torch.inf)
    assert torch.isin(found.stop, torch.tensor([Stop.SETTLED, Stop.NO_PROGRESS])).all()
    assert (found.steps < 60).all() and len(found.steps.unique()) > 1


def test_margins_that_need_more_steps_say_so():
    whole, cut = _solved(60, torch.inf), _solved(1, torch.inf)
    assert (cut.steps == 1).all() and (cut.stop == Stop.STEPS).any()
    assert (whole.best.radius >= cut.best.radius).all()
