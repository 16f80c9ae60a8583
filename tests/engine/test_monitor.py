"""What a training says about its use of the machine."""

import time

import pytest
import torch

from turborec.engine import hardware, monitor

CPU = torch.device("cpu")


def test_shares_are_of_the_time_that_passed():
    watch = monitor.Monitor(CPU)
    began = time.perf_counter()
    for _ in range(4):
        time.sleep(0.025)  # of which a fifth is said to have been spent waiting for data
        watch.add(waited=0.005, targets=300)
    passed = time.perf_counter() - began
    together, each = watch.read(exchange_seconds=0.01)
    assert each == [{name: together[name] for name in each[0]}]
    assert together["data_wait_share"] == pytest.approx(0.02 / passed, rel=0.05)
    assert together["communication_share"] == pytest.approx(0.04 / passed, rel=0.05)
    assert together["targets_per_second"] == pytest.approx(1200 / passed, rel=0.05)
    assert together["processor_share"] < 0.5  # it slept
    assert together["peak_mib"] == pytest.approx(hardware.peak_memory() / 2**20, rel=0.01)


def test_each_reading_is_of_what_came_since_the_one_before():
    watch = monitor.Monitor(CPU)
    watch.add(waited=9.0, targets=9_000_000)
    watch.read()
    time.sleep(0.01)
    together, _ = watch.read()
    assert together["data_wait_share"] == 0 == together["targets_per_second"]
    assert "communication_share" not in together


def test_work_is_seen():
    watch = monitor.Monitor(CPU)
    spent = time.process_time() + 0.05
    while time.process_time() < spent:
        sum(range(1000))
    together, _ = watch.read()
    assert together["processor_share"] * torch.get_num_threads() > 0.2


def test_a_line_names_every_process():
    own = {"peak_mib": 1234.0, "processor_share": 0.98, "data_wait_share": 0.004}
    together = own | {"targets_per_second": 52_000.0, "communication_share": 0.31}
    line = "52,000 targets/s, most memory 1,234 + 1,200 MiB, processors 98% busy, 0.4% of the time waiting for data"
    assert monitor.told(together, [own, own | {"peak_mib": 1200.0}]) == f"{line}, 31% for the exchange, were it by itself"


def test_long_epochs_are_told_of_on_the_way():
    every = monitor.EVERY
    told = [step for step in range(1, 2 * every + 11) if monitor.due(step, 2 * every + 10)]
    assert told == [every]  # what comes after twice as many is told at the end
    assert not any(monitor.due(step, every - 1) for step in range(1, every))
