"""Fetching, against a real server on this machine that does what bad connections do."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from turborec.errors import UserError
from turborec.sources import _fetch
from turborec.sources._fetch import Remote, fetch, fetch_trying, show_terms

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(BaseHTTPRequestHandler):
    """/range: honours Range; /plain: ignores it; /cut: stops half-way; /flaky: does so the first time; /chunks: as /cut
    without a length; /page and /page.zip: HTML; /empty; /absent: 404."""

    protocol_version = "HTTP/1.1"

    ranges: list[str | None]

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range"))
        body = {"/page": PAGE, "/page.zip": PAGE, "/empty": b""}.get(self.path, CONTENT)
        if self.path == "/absent":
            self.send_error(404)
            return
        start = int(self.headers["Range"][6:-1]) if self.path in ("/range", "/flaky") and self.headers["Range"] else 0
        if start > len(body):
            self.send_error(416)
            return
        self.close_connection = True
        self.send_response(206 if start else 200)
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3e8\r\n" + body[:500])
            return
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/zip")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        breaks = self.path == "/cut" or (self.path == "/flaky" and not start)
        self.wfile.write(body[start : len(body) // 2] if breaks else body[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    Handler.ranges = []


def known(address: str) -> Remote:
    return Remote(address, "data.zip", len(CONTENT), SHA256)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def test_file_arrives_whole_under_its_name(server: str, tmp_path: Path) -> None:
    path = fetch(known(f"{server}/range"), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"data.zip"}


def test_file_that_is_there_is_not_fetched(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(CONTENT)
    fetch(known(f"{server}/range"), tmp_path)
    assert Handler.ranges == []


def test_fetch_goes_on_from_where_it_stopped(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])
    assert fetch(known(f"{server}/range"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == ["bytes=1000-"]


def test_server_that_ignores_the_range_starts_over(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])
    assert fetch(known(f"{server}/plain"), tmp_path).read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_over(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(known(f"{server}/range"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_whole_part_needs_no_connection(tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    assert fetch(known("http://127.0.0.1:9/data.zip"), tmp_path).read_bytes() == CONTENT


def test_cut_off_transfer_leaves_only_the_part(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cut off after 256,000 of 512,000 bytes\. Run again to go on from there"):
        fetch(known(f"{server}/cut"), tmp_path)
    assert names(tmp_path) == {"data.zip.part"}
    assert fetch(known(f"{server}/range"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges[-1] == "bytes=256000-"


def test_broken_connection_is_tried_again_and_goes_on(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(_fetch.time, "sleep", waits.append)
    Handler.ranges = []
    path = fetch_trying(Remote(f"{server}/flaky", "data.zip", sha256=SHA256), tmp_path, tries=3)
    assert path.read_bytes() == CONTENT and Handler.ranges == [None, "bytes=256000-"] and waits == [2]
    assert "It is tried again in 2 s." in capsys.readouterr().err
    Handler.ranges = []
    with pytest.raises(UserError, match="gave another file"):  # which no further try would change
        fetch_trying(Remote(f"{server}/plain", "other.zip", sha256="0" * 64), tmp_path, tries=3)
    with pytest.raises(UserError, match="cut off"):
        fetch_trying(Remote(f"{server}/cut", "third.zip", sha256=SHA256), tmp_path, tries=3)
    assert Handler.ranges == [None] * 2 + ["bytes=256000-"] * 2


def test_transfer_without_length_that_breaks_is_not_trusted(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cut off after \d+ bytes\. Run again\. "):
        fetch(Remote(f"{server}/chunks", "data.zip"), tmp_path)
    assert "data.zip" not in names(tmp_path)


def test_wrong_content_is_thrown_away(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=rf"its SHA-256 is [0-9a-f]{{64}}, not {SHA256}"):
        fetch(known(f"{server}/range"), tmp_path)
    assert names(tmp_path) == set()


def test_wrong_size_is_thrown_away(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has 512,000 bytes, not 400,000"):
        fetch(Remote(f"{server}/plain", "data.zip", 400_000, SHA256), tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("path", ["page", "page.zip"])
def test_web_page_instead_of_the_file_is_refused(server: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="gave a web page instead of data"):
        fetch(Remote(f"{server}/{path}", "data.zip"), tmp_path)
    assert names(tmp_path) == set()


def test_empty_file_is_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is empty"):
        fetch(Remote(f"{server}/empty", "data.zip"), tmp_path)


def test_absent_file_names_status_address_and_place(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answered 404") as caught:
        fetch(known(f"{server}/absent"), tmp_path)
    assert f"{server}/absent" in str(caught.value) and str(tmp_path / "data.zip") in str(caught.value)


def test_without_connection_the_error_says_which_file_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot reach http://127\.0\.0\.1:9/data\.zip") as caught:
        fetch(known("http://127.0.0.1:9/data.zip"), tmp_path)
    assert f"(512,000 bytes, SHA-256 {SHA256})" in str(caught.value)
    assert f"put it here as {tmp_path / 'data.zip'}" in str(caught.value)


def test_wrong_local_file_is_kept_and_named(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"data\.zip is not the file expected: it has 4 bytes, not 512,000"):
        fetch(known(f"{server}/range"), tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == b"mine"


def test_unknown_checksum_is_trusted_once_and_recorded(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = Remote(f"{server}/plain", "data.zip")
    fetch(remote, tmp_path)
    assert f"trusted. Its SHA-256 {SHA256} is recorded" in capsys.readouterr().err
    assert (tmp_path / "data.zip.sha256").read_text() == f"{SHA256}  data.zip\n"
    fetch(remote, tmp_path)
    assert capsys.readouterr().err == ""


def test_content_that_changed_since_it_was_trusted_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.sha256").write_text(f"{'0' * 64}  data.zip\n")
    with pytest.raises(UserError, match=f"not {'0' * 64} as recorded in"):
        fetch(Remote(f"{server}/plain", "data.zip"), tmp_path)
    assert names(tmp_path) == {"data.zip.sha256"}


def test_without_checksum_a_part_is_not_continued(server: str, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(b"x" * 1000)
    assert fetch(Remote(f"{server}/range", "data.zip"), tmp_path).read_bytes() == CONTENT
    assert Handler.ranges == [None]


def test_file_address_is_copied(tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_bytes(CONTENT)
    assert fetch(known((tmp_path / "there.zip").as_uri()), tmp_path / "here").read_bytes() == CONTENT


@pytest.mark.parametrize("address", ["ftp://host/data.zip", "data.zip", "jar:data.zip"])
def test_other_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="An address starts with https://"):
        fetch(known(address), tmp_path)


def test_of_many_at_once_one_fetches(server: str, tmp_path: Path) -> None:
    with ThreadPool(4) as pool:
        paths = pool.map(lambda _: fetch(known(f"{server}/range"), tmp_path), range(4))
    assert set(paths) == {tmp_path / "data.zip"} and Handler.ranges == [None]


def test_folder_that_cannot_be_written_is_a_user_error(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write into"):
        fetch(known(f"{server}/range"), tmp_path / "file" / "folder")


def test_terms_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_terms("for research", tmp_path)
    show_terms("for research", tmp_path)
    assert capsys.readouterr().err == "Terms of use: for research\n"
    assert (tmp_path / "TERMS.txt").read_text() == "for research\n"


def test_changed_terms_are_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_terms("for research", tmp_path)
    show_terms("for anybody", tmp_path)
    assert capsys.readouterr().err.count("Terms of use") == 2
