"""An exploding gradient is told of once, with the module that it is in, and nothing else is."""

import logging

import pytest
import torch
from torch import nn

from turborec.engine.guard import Guard


def model(loud=1.0):
    built = nn.ModuleDict({"quiet": nn.Linear(3, 3), "loud": nn.Linear(3, 3)})
    for name, parameter in built.named_parameters():
        parameter.grad = torch.full_like(parameter, loud if "loud" in name else 1.0)
    return built


def test_it_is_told_once_and_where(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard()
    with caplog.at_level(logging.WARNING, "turborec"):
        for step in range(30):
            guard.look(1.0 + step % 3, model(), step)
        assert caplog.text == ""
        for step in range(30, 60):
            guard.look(1000.0, model(loud=100.0), step)
    assert caplog.text.count("explodes") == 1
    assert "step 31: its norm is 1e+03, where 2 is usual, 100% of its square in loud" in caplog.text


def test_the_first_steps_and_norms_that_grow_slowly_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    guard, norm = Guard(), 1.0
    with caplog.at_level(logging.WARNING, "turborec"):
        guard.look(1e6, model(), 0)
        for step in range(200):
            norm *= 1.03
            guard.look(norm, model(), step)
    assert caplog.text == ""


def test_gradients_of_rows_alone_count(caplog: pytest.LogCaptureFixture) -> None:
    guard, table = Guard(), nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1])).sum().backward()
    with caplog.at_level(logging.WARNING, "turborec"):
        for step in range(25):
            guard.look(1.0, table, step)
        guard.look(100.0, nn.ModuleDict({"table": table}), 25)
    assert "in table" in caplog.text
