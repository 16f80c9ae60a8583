"""The text encoder that needs no model, `hashed`: counted words and parts of words, weighted, hashed and condensed.

What it does, in numpy alone:

1. Terms are words, pairs of neighbouring words, and the parts of 3 to 5 characters of words, all in lower case after NFKC.
   CRC-32 puts each into one of `BINS` bins, half of them for words and pairs, half for parts.
2. A bin weighs (1 + ln count) (1 + ln((1 + N) / (1 + items that have it))). Words and parts are each scaled to length 1.
3. Bins are added up, with signs, in `FOLDED` columns (feature hashing: Weinberger et al., 2009, arXiv:0902.2206).
4. The table is projected onto its strongest right singular vectors, those of its Gram matrix [FOLDED, FOLDED], found
   exactly (latent semantic analysis: Deerwester et al., 1990). Rows are scaled to length 1.

It sees which words texts share and which of them are rare; it knows no synonyms but those that the texts themselves show,
and no word order. Its vectors depend on all texts of the table, so they are not cached, and those of two tables must not
be compared. Nothing is random: machines differ by rounding only, where singular values are not equal.
Letters: N items, D numbers of a vector.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turborec.data.negatives import GOLDEN, mixed

VERSION = 1
BINS = 2**18
FOLDED = 2048
PARTS = (3, 4, 5)
ITEMS_AT_A_TIME = 1024
LEAST = 1e-10
"""What is left of an eigenvalue, in parts of the largest, when it stands for nothing but rounding."""

LONGEST_KEPT = 40
"""Characters of a word whose bins are remembered; what is longer hardly comes again."""

_WORD = re.compile(r"\w+|[^\w\s]+")

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Corpus:
    """The texts of a table: their terms are counted as they come and kept in a folder; then all vectors can be had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks = 0
        self._items = 0
        self._known_in = np.zeros(BINS, np.int64)

    def add(self, texts: Sequence[str]) -> None:
        """Count the terms of a few texts, such as `ITEMS_AT_A_TIME`."""
        counted = [terms(text) for text in texts]
        for bins, _ in counted:
            self._known_in[bins] += 1
        widths = np.array([len(bins) for bins, _ in counted], np.int64)
        block = self._folder / str(self._blocks)
        np.save(f"{block}.widths.npy", widths, allow_pickle=False)
        np.save(f"{block}.bins.npy", np.concatenate([bins for bins, _ in counted]), allow_pickle=False)
        np.save(f"{block}.counts.npy", np.concatenate([counts for _, counts in counted]), allow_pickle=False)
        self._blocks += 1
        self._items += len(texts)

    def vectors(self, width: int) -> Iterator[Floats]:
        """The vectors [N, D = width] of all texts as they came, a block of them at a time.

        Columns that so few texts cannot fill are zero, as is the row of a text that shares no term with any direction.
        """
        if self.few():
            basis = _strongest_of_few(np.concatenate(list(self._folded())), width)
        else:
            gram: Doubles = np.zeros((FOLDED, FOLDED))
            for rows in self._folded():
                gram += rows.T @ rows
            basis = _strongest(gram, width)
        for rows in self._folded():
            yield scaled(rows @ basis).astype(np.float32)

    def few(self) -> bool:
        """Whether there are fewer items than columns."""
        return self._items < FOLDED

    def _folded(self) -> Iterator[Doubles]:
        """The weighted rows of each block: [n, FOLDED]."""
        rarity = 1 + np.log((1 + self._items) / (1 + self._known_in))
        column, sign = _folding()
        for block in range(self._blocks):
            widths, bins, counts = (
                np.load(self._folder / f"{block}.{part}.npy", allow_pickle=False) for part in ("widths", "bins", "counts")
            )
            row = np.repeat(np.arange(len(widths)), widths)
            weight = (1 + np.log(counts)) * rarity[bins]
            half = 2 * row + (bins >= BINS // 2)
            length = np.sqrt(np.bincount(half, weight**2, 2 * len(widths)))
            weight /= length[half]
            size = len(widths) * FOLDED
            flat = np.bincount(row * FOLDED + column[bins], weight * sign[bins], size).astype(np.float64, copy=False)
            yield flat.reshape(len(widths), FOLDED)


def terms(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bins of a text's terms, each once and in order, and how often each occurs; none in a text without characters."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    bins = [bin_ for word in words for bin_ in (_known_bins_of if len(word) <= LONGEST_KEPT else _bins_of)(word)]
    bins += [_hash(f"{one} {other}") % (BINS // 2) for one, other in pairwise(words)]
    return np.unique(np.array(bins, np.int64), return_counts=True)


def _bins_of(word: str) -> tuple[int, ...]:
    """The bins of a word and of its parts, its ends marked."""
    marked = f" {word} "
    parts = (marked[at : at + size] for size in PARTS for at in range(len(marked) - size + 1))
    return (_hash(word) % (BINS // 2), *(BINS // 2 + _hash(part) % (BINS // 2) for part in parts))


_known_bins_of = lru_cache(2**16)(_bins_of)


def _hash(term: str) -> int:
    return zlib.crc32(term.encode("utf-8", "replace"))


def _folding() -> tuple[NDArray[np.int64], Doubles]:
    """The column and the sign of each bin, from its bits mixed: the first numbers of SplitMix64 from 0."""
    bits = mixed((np.arange(BINS, dtype=np.uint64) * np.uint64(GOLDEN)).view(np.int64))
    return (bits % np.uint64(FOLDED)).astype(np.int64), np.where(bits >> np.uint64(63), -1.0, 1.0)


def _strongest(gram: Doubles, width: int) -> Doubles:
    """The `width` strongest eigenvectors [FOLDED, width]; zero where there are fewer."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    return _signed(vectors * (values > LEAST * values[0]))


def _strongest_of_few(rows: Doubles, width: int) -> Doubles:
    """The same of the Gram matrix of `rows` [N, FOLDED], from the products of N < FOLDED rows with each other."""
    values, left = np.linalg.eigh(rows @ rows.T)
    values, left = values[::-1][:width], left[:, ::-1][:, :width]
    there = values > LEAST * values[0]
    vectors = np.zeros((rows.shape[1], width))
    vectors[:, : len(values)][:, there] = rows.T @ (left[:, there] / np.sqrt(values[there]))
    return _signed(vectors)


def _signed(vectors: Doubles) -> Doubles:
    """Columns whose largest entry is positive, since a singular vector may as well be its opposite."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    found: Doubles = vectors * np.where(largest < 0, -1.0, 1.0)
    return found


def scaled(rows: Doubles) -> Doubles:
    """Rows of length 1; those that are zero, but for rounding, become zero."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: Doubles = np.where(length > 1e-9, rows / np.maximum(length, 1e-9), 0.0)
    return found
