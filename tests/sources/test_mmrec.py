import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turborec import recipes, stores
from turborec.data.prepare import Prepare, prepare
from turborec.data.split import Labelled
from turborec.data.store import open_store
from turborec.errors import UserError
from turborec.recipe import validate
from turborec.sources.mmrec import Config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mmrec"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / "toy", tmp_path / "toy")


def config(**more: Any) -> Config:
    return validate(Config, {"kind": "mmrec", "name": "toy", **more}, "the test")


def test_x_label_says_the_part_of_every_event(folder: Path) -> None:
    store = open_store(prepare(config().parse(folder), {}, Prepare(bad_rows=0), Labelled(), folder))
    rows = [line.split("\t") for line in (folder / "toy.inter").read_text().splitlines()[1:]]
    for part, label in (("train", "0"), ("validation", "1"), ("test", "2")):
        users = store.users_of(part)
        got = {
            (user, item)
            for user, begin, end in zip(store.user_ids.raw(users), *store.span(part, users), strict=True)
            for item in store.item_ids.raw(store.histories.items[begin:end] - 1)
        }
        assert got == {(user, item) for user, item, _, _, x_label in rows if x_label == label}
    assert store.card["time_unit"] == "seconds" and store.card["counts"]["events"] == len(rows)


def test_row_of_an_array_is_the_item_of_its_number(folder: Path) -> None:
    store = open_store(prepare(config().parse(folder), {}, Prepare(), Labelled(), folder))
    assert {name: table.shape[1] for name, table in store.features.items()} == {"image": 4, "text": 3}
    for name, table in store.features.items():
        raw = np.load(folder / f"{name}_feat.npy")
        rows = [int(text) for text in store.item_ids.raw(range(store.num_items))]
        assert np.array_equal(table[1:], raw[rows].astype(np.float32))


def test_times_and_values_are_read_where_they_are_there(folder: Path) -> None:
    events = config().parse(folder).events
    assert events.select == {"user": "userID", "item": "itemID", "value": "rating"} and set(events.derive) == {"time", "label"}
    (folder / "toy.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n")
    events = config().parse(folder).events
    assert events.select == {"user": "userID", "item": "itemID"} and set(events.derive) == {"label"}


def test_columns_may_be_called_otherwise(folder: Path) -> None:
    (folder / "toy.inter").write_text("u\ti\tpart\tstars\n0\t0\t0\t5\n")
    events = config(user="u", item="i", label="part", value="stars").parse(folder).events
    assert events.select == {"user": "u", "item": "i", "value": "stars"} and set(events.derive) == {"label"}
    with pytest.raises(UserError, match=r"toy\.inter has no column 'userID'"):
        config().parse(folder)
    with pytest.raises(UserError, match=r"has no column 'x_label'.* state which one is the label"):
        config(user="u", item="i").parse(folder)


def test_chosen_features_alone_are_described(folder: Path) -> None:
    np.save(folder / "audio_feat.npy", np.zeros((7, 1)))
    np.save(folder / "._image_feat.npy", np.zeros(1))  # as some systems leave beside a file
    assert list(config().parse(folder).features) == ["audio", "image", "text"]
    assert list(config(features=["text"]).parse(folder).features) == ["text"]
    assert config(features=[]).parse(folder).features == {}
    for step in (config(features=["image", "txt"]).parse, config(features=["image", "txt"]).download):
        with pytest.raises(
            UserError, match=r"no txt_feat\.npy beside .*toy\.inter \(did you mean 'text'\?\): there are audio, i"
        ):
            step(folder)


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError) as caught:
        config(name="mm/toy").download(tmp_path / "raw")
    for part in ("toy.inter", str(tmp_path / "raw"), str(tmp_path / "data" / "mm" / "toy")):
        assert part in str(caught.value)
    shutil.copytree(FIXTURES / "toy", tmp_path / "data" / "mm" / "toy")
    assert config(name="mm/toy").parse(tmp_path / "raw").events.paths == (tmp_path / "data" / "mm" / "toy" / "toy.inter",)


def test_another_split_than_the_labelled_one_is_asked_for_by_name() -> None:
    tree = {"data": {"source": {"kind": "mmrec", "name": "toy"}}, "model": {"kind": "popularity"}}
    with pytest.raises(UserError, match=r"source\.label says which part each event belongs to.*or state source\.label=null"):
        recipes.from_tree(tree, "the test")
    tree["data"]["source"]["label"] = None  # type: ignore[index]
    assert recipes.from_tree(tree, "the test").data.split.kind == "leave_one_out"


def test_recipe_trains_on_the_folder_as_it_is(folder: Path, tmp_path: Path) -> None:
    source = {"kind": "mmrec", "name": "toy", "features": ["image"]}
    tree = {"data": {"source": source, "split": {"kind": "labelled"}}, "model": {"kind": "popularity"}}
    store = stores.of_recipe(recipes.from_tree(tree, "the test"), stores.Places(tmp_path / "home", folder))
    assert store.features["image"].shape == (8, 4) and store.card["source"]["features"] == ["image"]
    assert stores.prepared_before(recipes.from_tree(tree, "the test"), tmp_path / "home") == store.folder
