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
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from turborec.errors import UserError

LOCK = "run.lock"
BEAT, LISTENED = 5.0, 30.0

LOST = 75
"""The exit code of a process that has lost its folder to another: it goes on when it is started again."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Holder:
    """Who holds a folder. The token tells containers apart that have one name and number their processes alike."""

    pid: int
    host: str
    token: str = ""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; `UserError` names the process that already does.

    A process that was taken for dead (stopped for long, or cut off from the disk) and is not any more ends at once when it
    sees that: what it holds in memory is older than what is in the folder.
    """
    path, own = folder / LOCK, _Holder(os.getpid(), socket.gethostname(), secrets.token_hex(8))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be written: {error.strerror}. Choose another.") from error
    try:
        _claim(file, path, own)
        left = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, own, left), name="turborec-lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            left.set()
            beating.join(2)  # in vain where the disk hangs
            if _read(file) == own:
                os.ftruncate(file, 0)
    finally:
        os.close(file)


def alive(pid: int) -> bool:
    """Whether there is such a process on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _claim(file: int, path: Path, own: _Holder) -> None:
    """Lock the file and write this process into it, or say who holds it."""
    locked, holder = _flock(file), _read(file)
    here = holder is not None and holder.host == own.host
    used = locked is False
    if holder is not None and not used and (not here or (locked is None and alive(holder.pid))):
        told = (path.parent, holder.pid, holder.host, LISTENED)
        log.warning("The run folder %s is held by process %d on %s: listening for %g s whether it lives.", *told)
        used = _shows_life(path)
    if used:
        # The kernel's lock is of this host: who has it may still be listening to the one that the file names.
        known = holder is not None and (here or locked is not False)
        who = f"process {holder.pid} on {holder.host}" if holder and known else "another process that has just begun"
        raise UserError(f"The run folder {path.parent} is in use by {who}. Wait for it or stop it, or choose another folder.")
    _write(file, own)


def _write(file: int, own: _Holder) -> None:
    """Put this process's name into the file, in one piece."""
    text = json.dumps(asdict(own)).encode()
    os.pwrite(file, text, 0)
    os.ftruncate(file, len(text))


def _beat(path: Path, own: _Holder, left: threading.Event) -> None:
    """Touch the file until the folder is left, or is not this process's any more, twice in a row."""
    strange = 0
    while not left.wait(BEAT):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            strange += 1
        except OSError:
            continue  # what is wrong with the disk is told by those who need it
        else:
            try:
                strange = 0 if _read(file) == own else strange + 1
                if not strange:
                    os.utime(file)
            except OSError:
                continue
            finally:
                os.close(file)
        if strange > 1 and not left.is_set():
            log.error("The run folder %s was taken by another process, so this one ends.", path.parent)
            os._exit(LOST)  # nothing more may be written into the folder, not even that it was lost


def _shows_life(path: Path) -> bool:
    """Whether the file is touched within `LISTENED` seconds."""
    seen, until = _touched(path), time.monotonic() + LISTENED
    while time.monotonic() < until:
        time.sleep(min(1.0, LISTENED / 10))
        if (now := _touched(path)) != seen and now is not None:
            return True
    return False


def _touched(path: Path) -> int | None:
    """When the file was last touched, by the clock of its disk. Opened anew, since NFS looks again only then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _flock(file: int) -> bool | None:
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


def _read(file: int) -> _Holder | None:
    """The process and host that a lock file names."""
    try:
        facts = json.loads(os.pread(file, 4096, 0))
        pid, host = facts["pid"], facts["host"]
        token = facts.get("token", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 2**31 or not isinstance(host, str) or not isinstance(token, str):
        return None
    return _Holder(pid, host, token)
