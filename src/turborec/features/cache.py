"""Vectors kept by what they were made of: the SHA-256 of a content, below the key of the encoder that read it.

`<home>/features/<key>/` holds `encoder.json`, which the key is the hash of, and shards. A shard is a safetensors file of
`hashes [n, 32]` and `vectors [n, D]`, whole or not there, called by the hash of its bytes: one that is damaged is found and
made again. Shards are only ever added, so that several processes may share a cache. It may be deleted at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from turborec.errors import UserError
from turborec.files import write_whole

Floats = NDArray[np.float32]

SHARDS_IN_MEMORY = 8

MADE_TOGETHER = 8192
"""Vectors that are made before they are kept: a kill loses no more than these."""

log = logging.getLogger("turborec")


def content_hash(content: str | bytes) -> bytes:
    """SHA-256 of a text as UTF-8, or of bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()


def key_of(identity: Mapping[str, Any]) -> str:
    """What an encoder's folder is called by: 16 digits of the hash of all that its vectors depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Cache:
    """The vectors of one encoder. In memory there are the hashes of all and the vectors of a few shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[bytes, tuple[str, int]] = {}
        self._vectors = lru_cache(SHARDS_IN_MEMORY)(self._read)

    def find(self, hashes: Sequence[bytes]) -> dict[bytes, Floats]:
        """The vectors there are of these contents."""
        return {each: self._vectors(place[0])[place[1]] for each in hashes if (place := self._places.get(each))}

    def add(self, hashes: Sequence[bytes], vectors: Floats) -> None:
        """Keep vectors [n, D] of new contents. They are on the disk when this returns."""
        if not hashes:
            return
        table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
        content = save({"hashes": table, "vectors": np.ascontiguousarray(vectors)})
        name = f"{_name(content)}.safetensors"
        write_whole(self.folder / name, content)
        self._places |= {each: (name, row) for row, each in enumerate(hashes)}

    def through(self, hashes: Sequence[bytes], make: Callable[[list[int]], Floats]) -> tuple[Floats, int]:
        """The vectors [N, D] of these contents, N >= 1, and how many had to be made.

        `make` is given the places of some that are new, each content once, and what it gives is kept before it goes on.
        """
        known = self.find(list(dict.fromkeys(hashes)))
        new = list({each: place for place, each in enumerate(hashes) if each not in known}.values())
        for begin in range(0, len(new), MADE_TOGETHER):
            some = new[begin : begin + MADE_TOGETHER]
            made, names = make(some), [hashes[place] for place in some]
            self.add(names, made)
            known |= dict(zip(names, made, strict=True))
        return np.stack([known[each] for each in hashes]), len(new)

    def admit(self, path: Path) -> None:
        """Know the vectors of a shard, or delete it if it is damaged."""
        content = path.read_bytes()
        try:
            if _name(content) != path.stem:
                raise ValueError("its bytes have changed")
            hashes = load(content)["hashes"]
        except (ValueError, KeyError, SafetensorError) as error:
            log.warning("%s is damaged (%s): what it held is encoded again.", path, error)
            path.unlink(missing_ok=True)
            return
        self._places |= {bytes(row): (path.name, place) for place, row in enumerate(hashes)}

    def _read(self, name: str) -> Floats:
        vectors: Floats = load((self.folder / name).read_bytes())["vectors"]
        return vectors


def open_cache(home: Path, identity: Mapping[str, Any]) -> Cache:
    """The cache of the encoder that is described by `identity`; made where there is none."""
    folder = home / "features" / key_of(identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The cache {folder} cannot be made: {error.strerror}. Name another --home.") from error
    if not (folder / "encoder.json").is_file():
        write_whole(folder / "encoder.json", json.dumps(identity, indent=1, sort_keys=True) + "\n")
    cache = Cache(folder)
    for path in sorted(folder.glob("*.safetensors")):
        cache.admit(path)
    return cache


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
