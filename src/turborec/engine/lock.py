"""One process at a time in a run folder, whatever became of the one before.

`run.lock` names the process that holds the folder. The kernel drops the lock of a process that dies. Between hosts, and on
file systems without locks, the file itself shows life: its holder touches it every `BEAT` seconds, and who finds another's
name in it listens for `LISTENED` seconds before taking its place.
"""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from turborec.errors import UserError

LOCK = "run.lock"
BEAT, LISTENED = 5.0, 30.0

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

log = logging.getLogger(__name__)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; `UserError` names the process that already does.

    A process that was taken for dead (stopped for long, or cut off from the disk) and is not any more is told to end.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be written: {error.strerror}. Choose another.") from error
    with file:
        _claim(file, path)
        left = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, left), name="turborec-lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            left.set()
            beating.join(2)  # in vain where the disk hangs
            if _holder(file) == _self():
                file.truncate(0)


def alive(pid: int) -> bool:
    """Whether there is such a process on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _claim(file: TextIO, path: Path) -> None:
    """Lock the file and write this process into it, or say who holds it."""
    locked, holder = _flock(file), _holder(file)
    used = locked is False
    if not used and holder is not None and holder != _self():
        pid, host = holder
        here = host == socket.gethostname()
        if not here or (locked is None and alive(pid)):
            log.warning(
                "The run folder %s is held by process %d on %s: listening for %g s whether it lives.",
                path.parent,
                pid,
                host,
                LISTENED,
            )
            used = _shows_life(path)
    if used:
        who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
        raise UserError(f"The run folder {path.parent} is in use by {who}. Wait for it or stop it, or choose another folder.")
    file.truncate(0)
    file.write(json.dumps(dict(zip(("pid", "host"), _self(), strict=True))))
    file.flush()


def _beat(path: Path, left: threading.Event) -> None:
    """Touch the file until the folder is left, or another process has taken it."""
    while not left.wait(BEAT):
        try:
            with path.open("r", encoding="utf-8") as file:
                holder = _holder(file)
            if holder == _self():
                os.utime(path)
                continue
        except OSError:
            continue  # what is wrong with the disk is told by those who need it
        if holder is not None:
            log.error("Process %d on %s has taken the run folder %s, so this one ends.", *holder, path.parent)
            signal.raise_signal(signal.SIGTERM)
            return


def _shows_life(path: Path) -> bool:
    """Whether the file is touched within `LISTENED` seconds."""
    seen, until = _touched(path), time.monotonic() + LISTENED
    while time.monotonic() < until:
        time.sleep(min(1.0, LISTENED / 10))
        if _touched(path) != seen:
            return True
    return False


def _touched(path: Path) -> int:
    """When the file was last touched, by the clock of its disk. Opened anew, since NFS looks again only then."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _self() -> tuple[int, str]:
    return os.getpid(), socket.gethostname()


def _flock(file: TextIO) -> bool | None:
    """Whether the lock was had; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _holder(file: TextIO) -> tuple[int, str] | None:
    """The process and host that a lock file names."""
    file.seek(0)
    try:
        facts = json.loads(file.read())
        return int(facts["pid"]), str(facts["host"])
    except (ValueError, KeyError, TypeError):
        return None
