"""Brings a file from the web: on from where it stopped, verified before it gets its name, never fetched twice."""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from turborec import progress
from turborec.errors import UserError

CHUNK = 1 << 18
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Remote:
    """A file on the web: its address, the name it gets here, and what is known of its content.

    Without a known SHA-256 the first content that comes is trusted, recorded beside the file, and must not change.
    """

    address: str
    name: str
    size: int | None = None  # bytes
    sha256: str | None = None


class CutOffError(UserError):
    """The connection was not there, or broke: another try may go on from there."""


def fetch_trying(remote: Remote, folder: Path, tries: int) -> Path:
    """As `fetch`, but where the connection breaks it is tried again, ever later; what came is kept if its hash is known."""
    for number in range(1, tries):
        try:
            return fetch(remote, folder)
        except CutOffError as error:
            print(f"{error} It is tried again in {2**number} s.", file=sys.stderr, flush=True)
            time.sleep(2**number)
    return fetch(remote, folder)


def fetch(remote: Remote, folder: Path) -> Path:
    """The verified file in `folder`; it is fetched from its address only when it does not lie there yet."""
    target = folder / remote.name
    with locked(folder):
        if target.is_file():
            if fault := _fault(target, target, remote):
                raise UserError(f"{target} is not the file expected: {fault}. Move it away and run again.")
        else:
            part = target.with_name(target.name + ".part")
            _transfer(remote, part, target)
            if fault := _fault(part, target, remote):
                part.unlink()
                raise UserError(f"{remote.address} gave another file: {fault}. {_by_hand(remote, target)}")
            part.replace(target)
        if remote.sha256 is None:
            _remember(target, remote)
    return target


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder`; of several processes that want to fill it one works and the others wait."""
    with _writable(folder), (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is filling {folder}: waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def show_terms(terms: str, folder: Path) -> None:
    """Print the terms of use when data are first fetched into `folder`; TERMS.txt there records that they were."""
    record = folder / "TERMS.txt"
    if record.is_file() and record.read_text(encoding="utf-8") == f"{terms}\n":
        return
    print(f"Terms of use: {terms}", file=sys.stderr, flush=True)
    with _writable(folder):
        record.write_text(f"{terms}\n", encoding="utf-8")


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make `folder`; what cannot be written there is a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write into {folder}: {error.strerror or error}. Free some space or name another folder."
        ) from error


def _transfer(remote: Remote, part: Path, target: Path) -> None:
    """Append to `part` what is missing of it."""
    # Without a known hash nothing would notice that the file changed since the part was begun.
    have = part.stat().st_size if remote.sha256 and part.is_file() else 0
    if have and have == remote.size:
        return
    with _open(remote, have, target) as response:
        begin = have if getattr(response, "status", None) == 206 else 0
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length else remote.size
        chunks = _chunks(response, begin, total, remote, target)
        first = next(chunks, b"")
        if _is_page(response.headers.get_content_type(), b"" if begin else first):
            raise UserError(
                f"{remote.address} gave a web page instead of {remote.name}: the file has moved, or the page of a login "
                f"or a proxy came in between. {_by_hand(remote, target)}"
            )
        with progress.task(f"Fetching {remote.name}", total, "bytes") as advance:
            advance(begin)
            with part.open("ab" if begin else "wb") as file:
                for chunk in chain([first], chunks):
                    file.write(chunk)
                    advance(len(chunk))


def _open(remote: Remote, have: int, target: Path) -> Any:
    """The response that holds the file from byte `have` on or, where the server ignores that, all of it."""
    if urlsplit(remote.address).scheme not in ("http", "https", "file"):
        raise UserError(f"An address starts with https://, http:// or file://, got {remote.address!r}.")
    headers = {"User-Agent": "turborec"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urlopen(Request(remote.address, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the part is longer than the file: begin anew
            return _open(remote, 0, target)
        raise UserError(f"{remote.address} answered {error.code} {error.reason}. {_by_hand(remote, target)}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise CutOffError(f"Cannot reach {remote.address}: {reason}. {_by_hand(remote, target)}") from error


def _chunks(response: Any, begin: int, total: int | None, remote: Remote, target: Path) -> Iterator[bytes]:
    """The response piece by piece; a UserError where it breaks off. What exceeds the known size is not read."""
    done, cause = begin, None
    try:
        while (remote.size is None or done <= remote.size) and (chunk := response.read(CHUNK)):
            done += len(chunk)
            yield chunk
    except (OSError, HTTPException) as error:
        cause = error
    if cause or (total is not None and done < total):
        resume = " to go on from there" if remote.sha256 else ""
        of_total = "" if total is None else f" of {total:,}"
        raise CutOffError(
            f"{remote.address} was cut off after {done:,}{of_total} bytes. Run again{resume}. {_by_hand(remote, target)}"
        ) from cause


def _is_page(content_type: str, begin: bytes) -> bool:
    """Whether a response is a web page, by what it says it is or by how it begins."""
    return content_type == "text/html" or begin.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _fault(path: Path, target: Path, remote: Remote) -> str:
    """What is wrong with the content of `path`, which is or will be `target`; '' when it is right."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    if remote.size is not None and size != remote.size:
        return f"it has {size:,} bytes, not {remote.size:,}"
    record = _record(target)
    expected = remote.sha256 or (record.read_text(encoding="utf-8").split()[0] if record.is_file() else None)
    if expected and (got := _sha256(path)) != expected:
        return f"its SHA-256 is {got}, not {expected}" + ("" if remote.sha256 else f" as recorded in {record}")
    return ""


def _remember(target: Path, remote: Remote) -> None:
    """Record the hash of a file of which none is known, once."""
    record = _record(target)
    if not record.is_file():
        digest = _sha256(target)
        record.write_text(f"{digest}  {target.name}\n", encoding="utf-8")
        print(
            f"Nobody states a checksum of {remote.address}: what came first is trusted. Its SHA-256 {digest} is recorded "
            f"in {record}; other content will be refused from now on.",
            file=sys.stderr,
            flush=True,
        )


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _by_hand(remote: Remote, target: Path) -> str:
    """How to do without the connection: which file to put where."""
    known = [f"{remote.size:,} bytes"] if remote.size is not None else []
    known += [f"SHA-256 {remote.sha256}"] if remote.sha256 else []
    facts = f" ({', '.join(known)})" if known else ""
    return f"Without it: fetch {remote.address}{facts} on another machine and put it here as {target}."
