import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores import store_of
from turborec.data.store import Ids, Store, open_store, sha256
from turborec.errors import UserError

TRAIN, VALIDATION, TEST = 1, 2, 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Users with all three parts, without training, with training alone, and without any part."""
    histories = [[1, 2, 3, 4, 5], [2, 3], [4], [5, 1, 1]]
    cuts = [(2, 4), (1, 1), (1, 1), (2, 3)]
    return store_of(tmp_path / "store", histories, cuts=cuts, parts=[TRAIN + VALIDATION + TEST, TEST, TRAIN, VALIDATION])


def test_users_of_a_part_are_those_with_its_bit(store: Store) -> None:
    assert store.users_of("train").tolist() == [0, 2]
    assert store.users_of("validation").tolist() == [0, 3]
    assert store.users_of("test").tolist() == [0, 1]


def test_spans_of_the_parts_meet_at_the_cuts(store: Store) -> None:
    everybody = np.arange(4)
    spans = [store.span(part, everybody) for part in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert [(starts.tolist(), ends.tolist()) for starts, ends in spans] == [
        ([0, 5, 7, 8], [2, 6, 8, 10]),
        ([2, 6, 8, 10], [4, 6, 8, 11]),
        ([4, 6, 8, 11], [5, 7, 8, 11]),
    ]


def test_training_holds_the_training_parts_of_training_users_alone(store: Store) -> None:
    training = store.training()
    assert training.offsets.tolist() == [0, 2, 2, 3, 3]
    assert training.items.tolist() == [1, 2, 4]
    assert len(training.times) == 3


def test_arrays_are_read_only_maps_of_the_stated_types(store: Store) -> None:
    arrays = [store.histories.offsets, store.histories.items, store.histories.times, store.cuts, store.parts]
    assert [array.dtype.name for array in arrays] == ["int64", "int32", "int64", "int64", "uint8"]
    assert not any(array.flags.writeable for array in arrays)
    assert all(isinstance(array.base, np.memmap) for array in arrays)


@pytest.mark.parametrize("damage", ["cut short", "altered", "lost"])
def test_damage_of_any_file_is_found_and_named(store: Store, damage: str) -> None:
    for name in store.card["files"]:
        path = store.folder / name
        content = path.read_bytes()
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(content[:-1] if damage == "cut short" else content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"is damaged: {name} .*Delete the folder and prepare it again"):
            open_store(store.folder)
        path.write_bytes(content)
    open_store(store.folder)


def test_without_verification_sizes_are_compared_all_the_same(store: Store) -> None:
    path = store.folder / "times.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    open_store(store.folder, verify=False)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"times\.npy has"):
        open_store(store.folder, verify=False)


@pytest.mark.parametrize("content", [None, "", "{", "[1"])
def test_folder_without_a_readable_card_is_no_store(store: Store, content: str | None) -> None:
    card = store.folder / "card.json"
    card.unlink() if content is None else card.write_text(content)
    with pytest.raises(UserError, match="is not a prepared store"):
        open_store(store.folder)


def test_store_of_another_format_is_refused(store: Store) -> None:
    card = store.folder / "card.json"
    card.write_text(json.dumps({**store.card, "format": 0}))
    with pytest.raises(UserError, match="has store format 0, this version reads"):
        open_store(store.folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True), others=st.lists(st.text(max_size=8)))
def test_ids_are_found_by_text_and_read_by_row(tmp_path: Path, names: list[str], others: list[str]) -> None:
    ordered = sorted(names, key=str.encode)
    Ids.write(tmp_path / "ids", (name.encode() for name in ordered))
    ids = Ids(tmp_path / "ids")
    others = [name for name in others if name.isascii() and name not in names]
    assert len(ids) == len(names)
    assert ids.raw(range(len(ids))) == ordered
    assert ids.find([*names, *others]).tolist() == [ordered.index(name) for name in names] + [-1] * len(others)


def test_ids_may_be_a_megabyte_long(tmp_path: Path) -> None:
    names = ["a", "b" * 2**20, "c"]
    Ids.write(tmp_path / "ids", (name.encode() for name in names))
    assert Ids(tmp_path / "ids").find(["c", names[1], "b" * 2**20 + "b"]).tolist() == [2, 1, -1]


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["offsets", "items", "times", "cuts", "parts"])
@pytest.mark.parametrize("wrong", ["pickled array", "bare pickle", "other type", "no array"])
def test_a_store_of_a_stranger_executes_nothing_even_if_its_checksums_agree(tmp_path, name, wrong):
    folder = store_of(tmp_path / "store", [[1, 2, 3, 4], [2, 3, 1]]).folder
    path, marker = folder / f"{name}.npy", tmp_path / "executed"
    if wrong == "pickled array":
        np.save(path, np.asarray([Evil(marker)], dtype=object), allow_pickle=True)
    elif wrong == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(marker)))
    elif wrong == "other type":
        np.save(path, np.zeros(3, dtype=np.float32))
    else:
        path.write_bytes(b"not an array")
    card = json.loads((folder / "card.json").read_text())
    card["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=f"{name}.npy"):
        open_store(folder)
    assert not marker.exists()
