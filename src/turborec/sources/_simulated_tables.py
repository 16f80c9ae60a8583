"""Writes simulated histories, item texts and item features to files, in bounded memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turborec import progress

Int = NDArray[np.int64]

ROWS = 100_000  # of items at a time
WORDS_PER_CLUSTER = 12
NOISE = 0.5
"""The standard deviation of an item's features around the centre of its cluster; the centres' own is 1."""

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")


def write_events(path: Path, blocks: Iterable[tuple[Int, Int, Int]], users: int) -> None:
    """Write blocks of (users, items, times) as raw ids; `users` is how many there will be in all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.int64()) for name in ("user", "item", "time")])
    with pq.ParquetWriter(path, schema, compression="zstd") as file, progress.task("Simulating", users, "users") as advance:
        for block in blocks:
            file.write_table(pa.table(list(block), schema=schema))
            advance(len(np.unique(block[0])))


def write_items(path: Path, items: Int, cluster: Int, random: np.random.Generator) -> None:
    """Write raw ids, a title of three words of the item's cluster and one that any item may have, and the cluster."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("item", pa.int64()), ("title", pa.string()), ("cluster", pa.int64())])
    groups = int(cluster.max()) + 2  # the last group of words is everybody's
    words = _words(groups * WORDS_PER_CLUSTER, random).reshape(groups, WORDS_PER_CLUSTER)
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for start in range(0, len(items), ROWS):
            own = cluster[start : start + ROWS]
            drawn = random.integers(0, WORDS_PER_CLUSTER, (len(own), 4))
            group = np.stack([own, own, own, np.full(len(own), groups - 1)], axis=1)
            titles = [" ".join(row) for row in words[group, drawn]]
            file.write_table(pa.table([items[start : start + ROWS], titles, own], schema=schema))


def write_features(path: Path, cluster: Int, width: int, random: np.random.Generator) -> None:
    """Write float32 [V, width]: normal around a normal centre of the item's cluster."""
    centres = random.standard_normal((int(cluster.max()) + 1, width), dtype=np.float32)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(cluster), width))
    for start in range(0, len(cluster), ROWS):
        own = cluster[start : start + ROWS]
        table[start : start + ROWS] = centres[own] + NOISE * random.standard_normal((len(own), width), dtype=np.float32)
    table.flush()


def _words(count: int, random: np.random.Generator) -> NDArray[np.str_]:
    """`count` different words of as many syllables as it takes."""
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    length = 2
    while len(syllables) ** length < 2 * count:
        length += 1
    drawn = random.choice(len(syllables) ** length, count, replace=False)
    digits = [drawn // len(syllables) ** place % len(syllables) for place in range(length)]
    return np.array(["".join(syllables[int(digit)] for digit in word) for word in zip(*digits, strict=True)])
