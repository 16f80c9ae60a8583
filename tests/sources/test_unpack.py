"""Unpacking, with the archives that harm those who trust them."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from turborec.errors import UserError
from turborec.sources import _unpack
from turborec.sources._unpack import unpack

GOOD = {"ml/ratings.dat": b"1::2::3::4\n" * 100, "ml/README": b"terms", "ml/movies.dat": b"2::A::B\n"}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


Maker = Callable[[Path, dict[str, bytes]], Path]
both = pytest.mark.parametrize("make", [zipped, tarred])


def assert_refused(archive: Path, folder: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        unpack(archive, ["ml/ratings.dat"], folder)
    assert not folder.exists(), "nothing may be written"


@both
def test_only_wanted_members_come_out(make: Maker, tmp_path: Path) -> None:
    unpack(make(tmp_path / "archive", GOOD), ["ml/ratings.dat", "ml/movies.dat"], tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {name: GOOD[name] for name in ("ml/ratings.dat", "ml/movies.dat")}


@both
@pytest.mark.parametrize(
    "name",
    ["../evil", "ml/../../evil", "/etc/evil", "C:/evil", "C:evil", "..\\evil", "ml\\evil", "ml/evil\n", "ml/e\x1bvil"],
)
def test_names_that_leave_the_folder_or_confuse_are_refused(make: Maker, name: str, tmp_path: Path) -> None:
    assert_refused(make(tmp_path / "archive", GOOD | {name: b"x"}), tmp_path / "out", "its name")


def test_zip_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD | {"ml/a_b": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"ml/a_b", b"ml/a\0b"))
    assert_refused(archive, tmp_path / "out", "control characters")


@both
@pytest.mark.parametrize("name", ["ml/Ratings.dat", "ML/ratings.dat", "ml/./ratings.dat", "ml//ratings.dat"])
def test_names_of_the_same_file_on_some_system_are_refused(make: Maker, name: str, tmp_path: Path) -> None:
    assert_refused(make(tmp_path / "archive", GOOD | {name: b"x"}), tmp_path / "out", "names the same file")


def test_names_that_differ_only_by_composition_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD | {"ml/caf\u00e9": b"x", "ml/cafe\u0301": b"x"})
    assert_refused(archive, tmp_path / "out", "names the same file")


def test_zip_with_duplicate_names_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD)
    with zipfile.ZipFile(archive, "a") as again, pytest.warns(UserWarning, match="Duplicate name"):
        again.writestr("ml/ratings.dat", b"other")
    assert_refused(archive, tmp_path / "out", "names the same file")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_with_a_link_or_device_is_refused(kind: int, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD)
    info = zipfile.ZipInfo("ml/link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    assert_refused(archive, tmp_path / "out", "link or a device")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_with_a_link_or_device_is_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("ml/ratings.dat")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    assert_refused(tmp_path / "a.tar", tmp_path / "out", "link or a device")


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the first entry of the directory
    archive.write_bytes(content)
    assert_refused(archive, tmp_path / "out", "encrypted")


@both
def test_bomb_is_refused_by_its_ratio(make: Maker, tmp_path: Path) -> None:
    archive = make(tmp_path / "bomb", GOOD | {"ml/zeros": bytes(40 << 20)})
    assert archive.stat().st_size < 100_000
    assert_refused(archive, tmp_path / "out", rf"unpacks to 41,94\d,\d+ bytes, more than the {16 << 20:,} allowed")


def test_tar_that_claims_ten_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("ml/ratings.dat")
    info.size = 10 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(1024))
    assert_refused(tmp_path / "a.tar", tmp_path / "out", "unpacks to 10,737,418,240 bytes")


def test_zip_that_unpacks_to_more_than_it_claims_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"ml/ratings.dat": bytes(1 << 20)})
    content = archive.read_bytes().replace(struct.pack("<L", 1 << 20), struct.pack("<L", 100))
    archive.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, ["ml/ratings.dat"], tmp_path / "out")
    assert not (tmp_path / "out" / "ml" / "ratings.dat").exists()


@both
def test_too_many_members_are_refused(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unpack, "MAX_MEMBERS", 50)
    archive = make(tmp_path / "archive", {f"ml/{i}": b"x" for i in range(51)})
    assert_refused(archive, tmp_path / "out", "more than 50 members")


@both
def test_total_size_is_limited(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unpack, "MAX_BYTES", 1000)
    assert_refused(make(tmp_path / "archive", GOOD), tmp_path / "out", "more than the 1,000 allowed")


@both
def test_missing_member_is_named(make: Maker, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", {"ml/README": b"x"})
    assert_refused(archive, tmp_path / "out", r"holds no ml/ratings\.dat")


@both
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_archive_cut_short_is_refused(make: Maker, share: float, tmp_path: Path) -> None:
    archive = make(tmp_path / "archive", GOOD | {"ml/noise": bytes(range(256)) * 100})
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, ["ml/ratings.dat"], tmp_path / "out")


def test_flipped_bit_is_noticed(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD)
    content = bytearray(archive.read_bytes())
    content[30 + len("ml/ratings.dat") + 5] ^= 1  # in the first member's compressed content
    archive.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, ["ml/ratings.dat"], tmp_path / "out")
    assert not (tmp_path / "out" / "ml" / "ratings.dat").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not an archive")
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "cannot be unpacked")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_one_flipped_byte_of_a_compressed_tar_is_found_before_anything_is_there(tmp_path: Path, mode: Literal["w:gz"]) -> None:
    content = random.Random(0).randbytes(300_000)
    with tarfile.open(tmp_path / "archive", mode) as archive:
        info = tarfile.TarInfo("ml/ratings.dat")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    packed = bytearray((tmp_path / "archive").read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "archive").write_bytes(packed)
    assert_refused(tmp_path / "archive", tmp_path / "out", "cannot be unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_one_flipped_byte_of_a_zip_is_found(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w", method) as archive:
        archive.writestr("ml/ratings.dat", random.Random(0).randbytes(300_000))
    packed = bytearray((tmp_path / "archive").read_bytes())
    packed[5000] ^= 0xFF
    (tmp_path / "archive").write_bytes(packed)
    with pytest.raises(UserError, match=r"annot (be unpacked|unpack)"):
        unpack(tmp_path / "archive", ["ml/ratings.dat"], tmp_path / "out")


def test_an_archive_that_goes_on_behind_its_end_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    with tarfile.open(plain, "w") as archive:
        archive.addfile(tarfile.TarInfo("ml/ratings.dat"), io.BytesIO())
    with gzip.open(tmp_path / "archive", "wb") as packed:
        packed.write(plain.read_bytes() + bytes(_unpack.SMALL_BYTES + 2**20))
    assert_refused(tmp_path / "archive", tmp_path / "out", "goes on behind its end")
