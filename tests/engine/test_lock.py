"""One process at a time holds a run folder."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import checkpoint_writer
import pytest

from turborec.engine import lock as locks
from turborec.engine.lock import lock
from turborec.errors import UserError


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "LISTENED", 0.5)


def named(folder: Path, pid: int, host: str = "elsewhere") -> Path:
    path = folder / "run.lock"
    path.write_text(json.dumps({"pid": pid, "host": host}))
    return path


def name_in(folder: Path) -> tuple[int, str]:
    facts = json.loads((folder / "run.lock").read_text())
    return facts["pid"], facts["host"]


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    child = context.Process(target=checkpoint_writer.hold, args=(tmp_path, held))
    child.start()
    try:
        assert held.wait(20)
        with pytest.raises(UserError) as caught, lock(tmp_path):
            pass
        assert str(caught.value) == (
            f"The run folder {tmp_path} is in use by process {child.pid} on {socket.gethostname()}. "
            "Wait for it or stop it, or choose another folder."
        )
    finally:
        child.kill()
        child.join()
    with lock(tmp_path):
        pass


def test_the_lock_can_be_taken_again_after_release_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        _ = 1 / 0
    with lock(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "turborec-lock"]


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory"), lock(tmp_path / "file" / "run"):
        pass


@pytest.mark.usefixtures("in_haste")
def test_what_a_dead_machine_left_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named(tmp_path, 1)
    with lock(tmp_path):
        assert name_in(tmp_path) == (os.getpid(), socket.gethostname())
    assert "held by process 1 on elsewhere: listening for 0.5 s whether it lives" in caplog.text


@pytest.mark.usefixtures("in_haste")
def test_what_another_machine_holds_and_touches_is_refused(tmp_path: Path) -> None:
    path, over = named(tmp_path, 1), threading.Event()

    def touch() -> None:
        while not over.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match="in use by process 1 on elsewhere"), lock(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.usefixtures("in_haste")
def test_who_holds_a_folder_touches_its_file(tmp_path: Path) -> None:
    with lock(tmp_path):
        before = (tmp_path / "run.lock").stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while (tmp_path / "run.lock").stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


HOLD = """
import pathlib, sys, time
from turborec.engine import lock as locks
locks.BEAT = 0.05
with locks.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("left", ['{"pid": 7, "host": "elsewhere"}', "", '{"pid": 1, "host"{"pid": 2', None])
def test_who_was_taken_for_dead_ends_and_writes_nothing(tmp_path: Path, left: str | None) -> None:
    """Another has its folder, or had it, or both wrote at once, or it is gone."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    if left is None:
        (tmp_path / "run.lock").unlink()
    else:
        (tmp_path / "run.lock").write_text(left)
    assert "was taken by another process, so this one ends" in child.communicate(timeout=60)[1]
    assert child.returncode == locks.LOST
    assert left is None or (tmp_path / "run.lock").read_text() == left


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xfe",
        b"[1]",
        b'{"pid": Infinity, "host": "x"}',
        b'{"pid": 1e400, "host": "x"}',
        b"[" * 4000,
        b'{"pid": -1, "host": "x"}',
    ],
)
def test_a_file_that_names_nobody_holds_nothing(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "run.lock").write_bytes(junk)
    with lock(tmp_path):
        assert name_in(tmp_path)[0] == os.getpid()


@pytest.mark.usefixtures("in_haste")
def test_where_the_file_system_has_no_locks_the_process_named_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    child = subprocess.Popen(["true"])
    child.wait()
    named(tmp_path, child.pid, socket.gethostname())
    began = time.monotonic()
    with lock(tmp_path):
        assert time.monotonic() - began < 0.5  # nothing to listen for
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    with monkeypatch.context() as patch:
        patch.setattr(locks, "LISTENED", 2 * 5.0)  # more than the beat of the process beside us
        other = context.Process(target=checkpoint_writer.hold, args=(tmp_path, held))
        other.start()
        try:
            assert held.wait(20)
            with pytest.raises(UserError, match=f"in use by process {other.pid}"), lock(tmp_path):
                pass
        finally:
            other.kill()
            other.join()
