"""Raw files in bounded memory: unpacked, cut into chunks of whole lines and decoded, and what a reader hands on."""

import codecs
import gzip
import re
import zlib
from bz2 import BZ2Decompressor
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 4 * 2**20
LONGEST_LINE = 64 * 2**20

PACKED_BYTES = 2**18
"""Of a compressed file that are read at a time."""

GZIP = re.compile(rb"\x1f\x8b")
BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
"""What such files begin with."""

Encoding = Literal["utf-8", "latin-1"]


@dataclass(frozen=True)
class Fault:
    """A row that cannot be told apart into columns."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Run:
    """Consecutive rows: the well-formed ones as text columns beside `LINE`, the others as faults."""

    table: "pa.Table"
    faults: list[Fault]
    blank: int
    bytes: int  # read from the file, compressed or not, since the run before


def first_line(path: Path) -> bytes:
    """The first line with its end; a UserError where it shows that the file is not text as we read it."""
    with opened(path) as (stream, _):
        first = stream.readline(LONGEST_LINE)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in first[:2]:
        raise UserError(f"{path} is UTF-16, or no text at all: write it anew as UTF-8.")
    if b"\r" in first.rstrip(b"\r\n") and not first.endswith(b"\n"):
        raise UserError(f"The lines of {path} end in CR alone: write it anew with LF or CRLF at their ends.")
    return first


def whole_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole lines in chunks, each with the bytes of the file read for it."""
    with opened(path) as (stream, raw):
        rest, seen = b"", 0
        while block := stream.read(CHUNK_BYTES):
            head, newline, tail = block.rpartition(b"\n")
            if newline:
                yield rest + head + newline, raw.tell() - seen
                rest, seen = tail, raw.tell()
            else:
                rest += tail
            if len(rest) > LONGEST_LINE:
                raise UserError(f"{path} has a line of more than {LONGEST_LINE >> 20} MB: is it a text file?")
        if rest:
            yield rest, raw.tell() - seen


def decoded(chunk: bytes, encoding: Encoding, first: int) -> tuple[list[str], list[Fault]]:
    """The lines of a chunk without their ends, and a fault for each that is not in the stated encoding."""
    chunk = chunk.removesuffix(b"\n").replace(b"\r\n", b"\n").removesuffix(b"\r")
    try:
        return chunk.decode(encoding).split("\n"), []
    except UnicodeDecodeError:
        lines = [line.decode(encoding, errors="replace") for line in chunk.split(b"\n")]
        faults = [
            Fault(first + place, encoding_reason(encoding), lines[place])
            for place, line in enumerate(chunk.split(b"\n"))
            if not decodes(line, encoding)
        ]
        return lines, faults


def decodes(line: bytes, encoding: Encoding) -> bool:
    """Whether a line is text in the encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def encoding_reason(encoding: Encoding) -> str:
    """What is wrong with a line that is not."""
    return f"not valid {encoding.upper()}"


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The text of a file, unpacked and without its byte order mark, beside the raw file it comes from."""
    with path.open("rb") as raw:
        begin = raw.peek(10)[:10]
        stream: BinaryIO = raw
        if GZIP.match(begin):
            stream = BufferedReader(cast("RawIOBase", gzip.GzipFile(fileobj=raw)))
        elif BZIP2.match(begin):
            stream = BufferedReader(_Bunzip2(raw))
        if cast("BufferedReader", stream).peek(3)[:3] == codecs.BOM_UTF8:
            stream.read(3)
        yield stream, raw


class _Bunzip2(RawIOBase):
    """What a file of one bzip2 stream or of several unpacks to; Python's own takes a damaged one for the end of the file."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._stream = BZ2Decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data or self._packed.read(PACKED_BYTES)
                if not packed:
                    return 0
                self._stream = BZ2Decompressor()
            elif self._stream.needs_input:
                packed = self._packed.read(PACKED_BYTES)
                if not packed:
                    raise EOFError("the compressed file ended before its end-of-stream marker was reached")
            content = self._stream.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Failures to read a file in words for the user."""
    import pyarrow as pa

    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
