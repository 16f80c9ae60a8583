"""A run's metrics, log and status survive crashes and resumes, and say what they should."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from turborec.engine import log
from turborec.engine.log import MetricsLog, environment, logging_to, read_metrics, write_status
from turborec.errors import UserError

LOGGER = logging.getLogger("turborec.engine.test")


def write_steps(folder: Path, steps: range, resumed_step: int = 0) -> None:
    with MetricsLog(folder, resumed_step) as metrics:
        for step in steps:
            metrics.write("train", step, {"loss": 1 / (1 + step)})


def steps_of(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder)]


# --- metrics ---


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as metrics:
        metrics.write("validation", 7, {"ndcg@10": 0.1 + 0.2, "users": 3, "note": "a\nb"})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time") > 1.7e9
    assert record == {"kind": "validation", "step": 7, "ndcg@10": 0.1 + 0.2, "users": 3, "note": "a\nb"}
    assert read_metrics(tmp_path)[0]["ndcg@10"] == 0.1 + 0.2


def test_a_record_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as metrics:
        metrics.write("train", 1, {"loss": 0.5})
        assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    with MetricsLog(tmp_path) as metrics:
        metrics.write("train", 1, {"loss": value})
    assert read_metrics(tmp_path)[0]["loss"] is None


def test_resuming_drops_what_comes_again(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(4, 8), resumed_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_starting_afresh_drops_everything(tmp_path: Path) -> None:
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(3))
    assert steps_of(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', '{"kind": "train"}x\n', "\x00\x00\n", "{"])
def test_a_last_line_torn_by_a_crash_is_cut(tmp_path: Path, torn: str) -> None:
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert steps_of(tmp_path) == [1, 2, 3]
    write_steps(tmp_path, range(4, 5), resumed_step=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_bad_line_before_the_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        MetricsLog(tmp_path, resumed_step=1)


def test_there_are_no_records_where_nothing_was_written(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File exists"):
        MetricsLog(tmp_path / "file")


def test_a_full_disk_is_told_plainly_and_costs_no_record_written_before(tmp_path: Path) -> None:
    with small_disk(tmp_path, kilobytes=64) as disk:
        with MetricsLog(disk) as metrics, pytest.raises(UserError, match="No space left on device"):
            for step in range(10_000):
                metrics.write("train", step, {"loss": 0.5})
        written = steps_of(disk)
    assert len(written) > 100
    assert written == list(range(len(written)))


# --- TensorBoard ---


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_numbers_are_mirrored_to_tensorboard_and_text_is_not(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as metrics:
        metrics.write("train", 1, {"loss": 0.5, "note": "text"})
        metrics.write("train", 2, {"loss": 0.25})
    assert events(tmp_path, "train/loss") == [(1, 0.5), (2, 0.25)]


def test_resuming_hides_the_events_that_come_again(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(4, 6), resumed_step=3)
    assert [step for step, _ in events(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]


def test_without_tensorboard_metrics_are_written_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    caplog.set_level(logging.INFO)
    write_steps(tmp_path, range(1, 4))
    assert steps_of(tmp_path) == [1, 2, 3]
    assert not (tmp_path / "tensorboard").exists()
    assert [record.message for record in caplog.records] == [
        "TensorBoard is not installed: metrics are written to metrics.jsonl alone."
    ]


# --- the log ---


def test_lines_carry_time_and_level(tmp_path: Path) -> None:
    with logging_to(tmp_path):
        LOGGER.info("20 epochs of %d steps", 84)
        LOGGER.debug("not shown")
    text = (tmp_path / "log.txt").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO 20 epochs of 84 steps\n", text)


def test_standard_error_and_a_folder_can_both_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None), logging_to(tmp_path):
        LOGGER.warning("careful")
    assert capsys.readouterr().err == (tmp_path / "log.txt").read_text()


def test_a_resumed_run_appends_to_its_log(tmp_path: Path) -> None:
    for _ in range(2):
        with logging_to(tmp_path):
            LOGGER.info("started")
    assert (tmp_path / "log.txt").read_text().count("started") == 2


def test_afterwards_logging_is_as_it_was(tmp_path: Path) -> None:
    logger = logging.getLogger("turborec")
    before = (logger.level, list(logger.handlers))
    with pytest.raises(ZeroDivisionError), logging_to(tmp_path):
        _ = 1 / 0
    assert (logger.level, list(logger.handlers)) == before


# --- status ---


def test_the_status_says_state_reason_and_who(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    write_status(tmp_path, "failed", "No space left on device")
    facts = json.loads((tmp_path / "status.json").read_text())
    assert (facts["state"], facts["reason"], facts["pid"]) == ("failed", "No space left on device", os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_status_that_cannot_be_written_is_a_warning_and_leaves_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, os.strerror(28))

    write_status(tmp_path, "running")
    monkeypatch.setattr(os, "fsync", fail)
    write_status(tmp_path, "failed", "why")
    assert "status.json was not written: No space left on device." in caplog.text
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


# --- surroundings ---


def test_the_environment_is_plain_json_with_the_facts_of_a_result() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["processor"]
    assert "/" not in facts["command"].split()[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A checkout with one commit that holds log.py."""
    (tmp_path / "log.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "log.py")
    git(tmp_path, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "-m", "first")
    yield tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_dirty_when_anything_differs(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert log._commit(checkout) == (head, False)
    (checkout / "new.py").write_text("")
    assert log._commit(checkout) == (head, True)


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    (installed / "log.py").write_text("")
    assert log._commit(installed) == (None, None)


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert log._commit(checkout) == (None, None)
