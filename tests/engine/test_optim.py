import math

import pytest
import torch

from turborec.engine.optim import AdamW, Constant, Cosine, Linear

SCHEDULES = [Constant(warmup=0.2), Linear(warmup=0.2), Cosine(warmup=0.2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_line_from_zero(schedule):
    assert [schedule.factor(p) for p in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0, 1 / 4, 1 / 2, 1])


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine()])
def test_without_warm_up_the_full_rate_comes_first(schedule):
    assert schedule.factor(0.0) == 1.0


def test_each_schedule_follows_its_curve():
    assert Constant(warmup=0.5).factor(0.9) == 1.0
    assert Linear(warmup=0.5, end=0.2).factor(0.75) == pytest.approx(1 - 0.8 * 0.5)
    assert Cosine(warmup=0.2, end=0.1).factor(0.4) == pytest.approx(1 - 0.9 * (1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("schedule", "end"), [(Linear(end=0.3), 0.3), (Cosine(end=0.3), 0.3), (Linear(), 0), (Cosine(), 0)])
def test_the_end_is_reached(schedule, end):
    assert schedule.factor(1.0) == pytest.approx(end)


def test_adamw_equals_the_paper():
    """Two steps written out from algorithm 2 of arXiv 1711.05101, for one matrix and one vector."""
    model = torch.nn.Linear(2, 2)
    config = AdamW(lr=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9)
    optimizer = config.build(model)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for step in (1, 2):
        for name, parameter in model.named_parameters():
            gradient = torch.full_like(parameter, 0.3 * step)
            parameter.grad = gradient
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            moved = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-8)
            decay = 0.5 if name == "weight" else 0.0
            expected[name] = expected[name] - 0.1 * (moved + decay * expected[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], atol=1e-6)
