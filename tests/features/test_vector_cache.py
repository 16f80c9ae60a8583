import json

import numpy as np
import pytest

from turborec.features.cache import content_hash, key_of, open_cache
from turborec.features.table import new_table

IDENTITY = {"name": "tiny", "code": 1}


def test_vectors_are_found_again_by_another_process(tmp_path):
    hashes = [content_hash(text) for text in ("a", "b", "c")]
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache = open_cache(tmp_path, IDENTITY)
    cache.add(hashes[:2], vectors[:2])
    cache.add(hashes[2:], vectors[2:])
    cache.add([], vectors[:0])
    found = open_cache(tmp_path, IDENTITY).find([*hashes, content_hash("d")])
    assert found.keys() == set(hashes)
    np.testing.assert_array_equal(np.stack([found[each] for each in hashes]), vectors)


def test_another_encoder_finds_nothing(tmp_path):
    open_cache(tmp_path, IDENTITY).add([content_hash("a")], np.ones((1, 2), np.float32))
    assert open_cache(tmp_path, {**IDENTITY, "code": 2}).find([content_hash("a")]) == {}
    assert json.loads((tmp_path / "features" / key_of(IDENTITY) / "encoder.json").read_text()) == IDENTITY


def test_a_flipped_bit_is_found_and_what_was_only_begun_is_not_read(tmp_path, caplog):
    cache = open_cache(tmp_path, IDENTITY)
    cache.add([content_hash("a")], np.ones((1, 2), np.float32))
    cache.add([content_hash("b")], np.ones((1, 2), np.float32))
    (cache.folder / ".half.safetensors.17").write_bytes(b"begun")
    damaged = sorted(cache.folder.glob("*.safetensors"))[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    again = open_cache(tmp_path, IDENTITY)
    assert len(again.find([content_hash("a"), content_hash("b")])) == 1
    assert "is damaged" in caplog.text
    assert not damaged.exists()


def test_a_table_is_what_numpy_reads_and_stands_only_when_it_is_whole(tmp_path):
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    with pytest.raises(RuntimeError), new_table(tmp_path / "t") as table:
        table.add_ids("ab")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_table(tmp_path / "t") as table:
        table.add_rows(rows[:2])
        table.add_ids(["a", "é", "c", "d", "e"])
        table.add_rows(rows[2:])
        table.finish({"columns": ["x"]})
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy", allow_pickle=False), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy", mmap_mode="r", allow_pickle=False), rows)
    assert (tmp_path / "t.ids.txt").read_text(encoding="utf-8") == "a\né\nc\nd\ne\n"
    card = json.loads((tmp_path / "t.json").read_text())
    assert (card["rows"], card["width"], card["columns"]) == (5, 3, ["x"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.ids.txt", "t.json", "t.npy"]


def test_a_table_never_holds_what_is_not_finite(tmp_path):
    with pytest.raises(ValueError, match="finite"), new_table(tmp_path / "t") as table:
        table.add_rows(np.array([[np.nan]], np.float32))
