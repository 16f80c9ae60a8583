"""Takes named files out of a zip or tar archive, after every member of it was found harmless."""

import gzip
import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from turborec import progress
from turborec.errors import UserError

MAX_MEMBERS = 10_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100  # text compresses 3 to 20 times; a bomb a thousand times
SMALL_BYTES = 16 << 20  # below this an archive may have any ratio
CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int  # bytes, unpacked
    fault: str  # why it may not be unpacked; '' for plain files and folders


_Opener = Callable[[str], IO[bytes]]
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError, NotImplementedError)


def unpack(archive: Path, wanted: Sequence[str], folder: Path) -> None:
    """Write the `wanted` members under `folder`; one dangerous member anywhere and nothing is written at all.

    Refused: names that leave the folder, links, devices, encrypted members, names that are equal or differ only by
    case, and archives that unpack to too many files or too many bytes. Raises UserError.
    """
    try:
        with _opened(archive) as (members, open_member):
            sizes = _check(archive, members)
            missing = [name for name in wanted if name not in sizes]
            if missing:
                raise UserError(f"{archive} holds no {', '.join(missing)}; it is another archive than the one expected.")
            total = sum(sizes[name] for name in wanted)
            with progress.task(f"Unpacking {archive.name}", total, "bytes") as advance:
                for name in wanted:
                    _extract(open_member, name, folder / name, advance)
    except _DAMAGED as error:
        raise UserError(f"{archive} cannot be unpacked: {error}. Delete it and run again.") from error
    except OSError as error:
        raise UserError(f"Cannot unpack {archive} into {folder}: {error.strerror or error}.") from error


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[Iterable[_Member], _Opener]]:
    """The members of an archive, told apart by its content, and how to open one of them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield map(_zip_member, opened.infolist()), opened.open
    else:
        with tarfile.open(archive) as tar:
            # A tar is read front to back: every member is judged by its header before its content is passed over.
            yield _tar_members(tar), lambda name: _tar_content(tar, name)


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    fault = ""
    # Only archives made on Unix carry a mode; 0 means that none was stored.
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "it is a link or a device"
    elif info.flag_bits & 1:
        fault = "it is encrypted"
    # `filename` was cut at a zero byte and had its separators changed; `orig_filename` is what the archive says.
    return _Member(info.orig_filename, info.file_size, fault)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    yield from map(_tar_member, tar)
    # The checksum of a compressed archive stands behind its last member, where nobody would read it otherwise.
    padding = 0
    while tar.fileobj is not None and (read := len(tar.fileobj.read(CHUNK))):
        padding += read
        if padding > SMALL_BYTES:
            raise tarfile.ReadError("it goes on behind its end")


def _tar_member(info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, "" if info.isreg() or info.isdir() else "it is a link or a device")


def _tar_content(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = tar.extractfile(name)
    if content is None:
        raise tarfile.ReadError(f"{name} is a folder where a file was expected")
    return content


def _check(archive: Path, members: Iterable[_Member]) -> dict[str, int]:
    """The size of every member by its name; the first dangerous one is a UserError."""
    sizes: dict[str, int] = {}
    folded: set[str] = set()
    total = 0
    most = min(MAX_BYTES, max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size))
    for member in members:
        plain = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        same = unicodedata.normalize("NFC", plain).casefold()
        total += member.size
        fault = member.fault or _name_fault(member.name)
        if same in folded:
            fault = "it names the same file as another member, at least where case does not count"
        elif total > most:
            fault = f"with it the archive unpacks to {total:,} bytes, more than the {most:,} allowed for its size"
        elif len(sizes) >= MAX_MEMBERS:
            fault = f"the archive has more than {MAX_MEMBERS:,} members"
        if fault:
            raise UserError(f"{archive} was not unpacked: member {member.name!r}: {fault}.")
        folded.add(same)
        sizes[member.name] = member.size
    return sizes


def _name_fault(name: str) -> str:
    """Why a name may not be written below a folder, on any system; '' when it may."""
    if not name or any(unicodedata.category(letter) == "Cc" for letter in name):
        return "its name is empty or has control characters"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "its name is absolute or has a separator of another system"
    if ".." in name.split("/"):
        return "its name leads out of the folder"
    return ""


def _extract(open_member: _Opener, name: str, target: Path, advance: progress.Advance) -> None:
    """Copy one member to `target`, which gets its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with open_member(name) as content, part.open("wb") as file:
        while chunk := content.read(CHUNK):
            file.write(chunk)
            advance(len(chunk))
    part.replace(target)
