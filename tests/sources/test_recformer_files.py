"""RecFormer's own files: written out of a store, and read again as the same one; what is wrong with them is named."""

import json

import pytest

from stores import item_id, store_of, user_id
from turborec.data import attributes
from turborec.data.prepare import Prepare, prepare
from turborec.data.recformer_files import export_recformer
from turborec.data.split import Labelled, LeaveOneOut
from turborec.data.store import open_store
from turborec.errors import UserError
from turborec.sources.recformer import Config

HISTORIES = [[1, 2, 3, 1, 4], [4, 3], [2, 5, 1], [5, 5, 2, 3]]
TOLD = {"title": ["a", 'the "b"', None, "d", "ü"], "brand": [None, "B", None, "D", "E"]}


@pytest.fixture
def files(tmp_path):
    store = store_of(tmp_path / "store", HISTORIES, items=5, told=TOLD)
    assert export_recformer(store, tmp_path / "files") == sum(map(len, HISTORIES))
    return tmp_path / "files"


def again(files, home, config=None, split=None, **settings):
    source = config or Config(attributes=("title", "brand"))
    source.download(files)
    return open_store(prepare(source.parse(files), {"kind": "recformer"}, Prepare(**settings), split or Labelled(), home))


def contents(store):
    items = store.histories.items
    return [items[slice(*store.histories.offsets[u : u + 2])].tolist() for u in range(store.num_users)]


def test_the_files_are_those_of_its_authors(files):
    read = {path.stem: json.loads(path.read_text()) for path in files.iterdir()}
    assert read["train"] == {"0": [0, 1, 2], "1": [3, 2], "2": [1], "3": [4, 4]}
    assert read["val"] == {"0": [0], "2": [4], "3": [1]} and read["test"] == {"0": [3], "2": [0], "3": [2]}
    assert read["umap"] == {user_id(u): u for u in range(4)} and read["smap"] == {item_id(i): i - 1 for i in range(1, 6)}
    assert read["meta_data"][item_id(2)] == {"title": 'the "b"', "brand": "B"} and read["meta_data"][item_id(3)] == {}


@pytest.mark.parametrize("split", [Labelled(), LeaveOneOut()])
def test_they_are_read_again_as_the_same_store(files, tmp_path, split):
    config = Config(attributes=("title", "brand"), label="files" if split.kind == "labelled" else None)
    store = again(files, tmp_path / "home", config, split)
    assert contents(store) == HISTORIES
    assert store.item_ids.raw(range(5)) == [item_id(i) for i in range(1, 6)]
    assert [attributes.texts(store, name) for name in ("title", "brand")] == [TOLD["title"], TOLD["brand"]]
    assert [store.users_of(part).tolist() for part in ("train", "validation", "test")] == [[0, 1, 2, 3], [0, 2, 3], [0, 2, 3]]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("smap", lambda told: told.pop(item_id(4)), r"train.json:2: item is not in smap.json"),
        ("umap", lambda told: told.pop(user_id(3)), r"user is not in umap.json"),
        ("train", lambda told: told.update({"0": {"1": 2}}), r"train.json:1: no text, no number and no list of those: 0: "),
        ("meta_data", lambda told: told.update({item_id(1): "a"}), r"meta_data.json:1: no object with title, brand"),
    ],
)
def test_what_is_wrong_is_named(files, tmp_path, name, change, said):
    path = files / f"{name}.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match=said):
        again(files, tmp_path / "home", bad_rows=0)


def test_an_item_that_nothing_is_told_of_shifts_no_row(files, tmp_path):
    path = files / "meta_data.json"
    told = json.loads(path.read_text())
    del told[item_id(2)]
    path.write_text(json.dumps(told))
    store = again(files, tmp_path / "home")
    assert attributes.texts(store, "title") == ["a", None, None, "d", "ü"] and contents(store) == HISTORIES


def test_files_that_are_none_are_told(files, tmp_path):
    (files / "train.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="must hold one JSON object of keys and values, got a list"):
        again(files, tmp_path / "home")
    (files / "train.json").write_text('{"0": [1, 2')
    with pytest.raises(UserError, match=r"train\.json is not JSON"):
        again(files, tmp_path / "home")
    (files / "val.json").unlink()
    with pytest.raises(UserError, match=r"train.json, val.json, .* are not in"):
        Config().download(files)


def test_a_store_that_tells_nothing_of_its_items_is_refused(tmp_path):
    with pytest.raises(UserError, match="tells nothing of its items"):
        export_recformer(store_of(tmp_path / "store", HISTORIES, items=5), tmp_path / "files")
