"""Progress is a bar on a terminal and plain lines elsewhere."""

import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

from turborec import progress
from turborec.progress import duration, task


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def on_terminal(program: str) -> str:
    """What a program shows on a terminal of 120 columns, without its control codes."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(command, stdin=writer, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
    os.close(reader)
    assert child.wait() == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_step_that_is_quickly_done_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Reading", 10) as advance:
        clock.now += 9
        advance(10)
    assert capsys.readouterr().err == ""


def test_lines_tell_work_share_rate_remaining_time_and_note(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Training", 5000, "steps") as advance:
        clock.now += 20
        advance(1200, "loss 0.31")
        assert capsys.readouterr().err == (
            # 1200 / 20 = 60 a second; (5000 - 1200) / 60 = 63 s
            "Training: 1,200 of 5,000 steps (24%), 60 steps/s, 1 min 03 s left, loss 0.31\n"
        )


def test_lines_come_every_ten_seconds_and_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Reading", 30) as advance:
        for _ in range(25):
            clock.now += 1
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 10 of 30 rows (33%), 1.00 rows/s, 20 s left",
        "Reading: 20 of 30 rows (66%), 1.00 rows/s, 10 s left",
        "Reading: 25 of 30 rows (83%), 1.00 rows/s, 5 s left",
    ]


def test_work_of_unknown_size_has_no_share_and_no_remaining_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Reading") as advance:
        clock.now += 100
        advance(5_000)
    assert capsys.readouterr().err.startswith("Reading: 5,000 rows, 50 rows/s\n")


def test_bytes_are_told_in_megabytes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Fetching", 40_000_000, "bytes") as advance:
        clock.now += 10
        advance(12_340_000)
        assert capsys.readouterr().err == "Fetching: 12.3 of 40.0 MB (30%), 1.23 MB/s, 22 s left\n"


def test_more_work_than_foretold_does_no_harm(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Reading", 0) as advance:
        clock.now += 10
        advance(5)
    assert capsys.readouterr().err.startswith("Reading: 5 of 0 rows")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (63, "1 min 03 s"), (7500, "2 h 05 min"), (3.6e6, "1,000 h 00 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_shows_a_bar_with_log_lines_above_it_and_clears_it_in_the_end() -> None:
    shown = on_terminal("""
        import sys, time
        from turborec.progress import task
        with task("Outer [1]", 2, "steps") as outer:
            with task("Inner", 100, "rows") as inner:
                time.sleep(0.2)
                inner(40, "loss 0.25")
                print("a line", file=sys.stderr)
                time.sleep(0.3)
            outer(1)
        print("the end")
    """)
    assert re.search(r"Outer \[1\] .*0 of 2 steps \(0%\)", shown)
    assert re.search(r"Inner .*40 of 100 rows \(40%\), \d+ rows/s, \d s left, loss 0\.25", shown)
    assert re.search(r"[\r\n]a line\r\n", shown)
    assert shown.rstrip().endswith("the end")


def test_without_rich_a_terminal_gets_lines() -> None:
    shown = on_terminal("""
        import sys, time
        sys.modules["rich"] = None
        from turborec import progress
        progress.QUIET_SECONDS = 0.0
        with progress.task("Reading", 4) as advance:
            time.sleep(0.01)
            advance(1)
    """)
    assert shown.startswith("Reading: 1 of 4 rows (25%), ")


def test_what_a_job_still_takes_follows_from_its_pace(monkeypatch):
    clock = iter([100.0, 160.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert progress.Pace(done=50).left(done=80, remaining=90) == "3 min 00 s left"
