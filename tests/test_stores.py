import logging
from pathlib import Path

import numpy as np
import pytest

from turborec import recipes, stores
from turborec.errors import UserError
from turborec.recipe import dump, override, parse
from turborec.stores import Places


def prepared(tmp_path, rows, caplog, split="{kind: leave_one_out}", **source):
    """What is logged about the store of a table with these rows."""
    (tmp_path / "events.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    said = ", ".join(f"{name}: {value}" for name, value in ({"time": "time"} | source).items())
    source = f"{{kind: table, events: {tmp_path / 'events.csv'}, user: user, item: item, {said}}}"
    overrides = [f"data.source={source}", f"data.split={split}", "data.prepare.min_user_events=1"]
    with caplog.at_level(logging.INFO, logger="turborec"):
        stores.of_recipe(recipes.load("ml-100k/sasrec", overrides), Places(tmp_path / "home"))
    return caplog.text


ROWS = [f"u{n % 5},i{n % 7},{1_700_000_000 + n}" for n in range(50)]


def test_events_without_a_time_are_told_of(tmp_path, caplog):
    rows = [row if n not in (3, 4, 8) else row.rsplit(",", 1)[0] + "," for n, row in enumerate(ROWS)]
    told = prepared(tmp_path, rows, caplog)
    assert "3 of 50 events have no time" in told and "2 users have both" in told


def test_a_table_without_times_is_told_to_be_in_the_order_of_its_files(tmp_path, caplog):
    assert "No event has a time: every history is in the order of the files" in prepared(tmp_path, ROWS, caplog, time="null")


@pytest.mark.parametrize("source", [{}, {"time": "null", "order": "time"}])
def test_times_and_stated_orders_need_no_word(tmp_path, caplog, source):
    assert "time" not in prepared(tmp_path, ROWS, caplog, **source)


def test_users_whose_events_all_come_after_the_cut_are_told_of(tmp_path, caplog):
    late = [*ROWS, *(f"late{n},i1,{1_700_000_100 + n}" for n in range(3))]
    told = prepared(tmp_path, late, caplog, split="{kind: global_time}")
    assert "users have events in the test part and none before it" in told


def test_a_store_is_found_again_without_its_raw_files(tmp_path, caplog):
    prepared(tmp_path, ROWS, caplog)
    source = f"{{kind: table, events: {tmp_path / 'events.csv'}, user: user, item: item, time: time}}"
    rules = [f"data.source={source}", "data.split={kind: leave_one_out}", "data.prepare.min_user_events=1"]
    (store,) = (tmp_path / "home" / "stores").iterdir()
    (tmp_path / "events.csv").unlink()
    assert stores.prepared_before(recipes.load("ml-100k/sasrec", rules), tmp_path / "home") == store
    other = recipes.load("ml-100k/sasrec", [*rules, "data.prepare.min_item_events=2"])
    assert stores.prepared_before(other, tmp_path / "home") is None


def described(tmp_path, *overrides):
    """A recipe of a table beside which lie the items' features, in files below `raw`."""
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    (raw / "events.csv").write_text("user,item,time\n" + "\n".join(ROWS) + "\n")
    np.save(raw / "posters.npy", np.arange(14, dtype=np.float32).reshape(7, 2))
    (raw / "posters.ids.txt").write_text("".join(f"i{n}\n" for n in range(7)))
    (raw / "sounds.tsv").write_text("id\t0\ni3\t0.5\n")
    tree = {
        "data": {"source": {"kind": "table", "events": "events.csv", "user": "user", "item": "item", "time": "time"}},
        "model": {"kind": "popularity"},
    }
    return recipes.from_tree(override(tree, overrides), "the test")


IMAGE = "data.features.image={table: posters.npy, ids: posters.ids.txt}"
SOUND = "data.features.sound.table=sounds.tsv"


def test_feature_tables_of_a_recipe_are_in_its_store(tmp_path):
    places = Places(tmp_path / "home", tmp_path / "raw")
    plain = stores.of_recipe(described(tmp_path), places)
    store = stores.of_recipe(described(tmp_path, IMAGE, SOUND), places)
    assert store.key != plain.key and not plain.features and "added_features" not in plain.card["source"]
    assert store.features["image"].tolist()[1:] == [[2.0 * n, 2.0 * n + 1] for n in range(7)]
    assert store.features["sound"][4].tolist() == [0.5] and np.isnan(store.features["sound"]).sum() == 7


def test_feature_tables_are_found_below_the_data_folder(tmp_path, monkeypatch):
    recipe = described(tmp_path, IMAGE)
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "raw"))
    assert stores.of_recipe(recipe, Places(tmp_path / "home")).features.keys() == {"image"}
    missing = described(tmp_path, "data.features.image.table=none.npy")
    with pytest.raises(UserError, match=r"no file none\.npy; looked for .*raw/none\.npy"):
        stores.of_recipe(missing, Places(tmp_path / "home"))


def test_a_name_that_the_source_has_too_is_refused(tmp_path):
    case = Path(__file__).parent / "fixtures" / "tiktok" / "three-users"
    tree = {"data": {"source": {"kind": "tiktok"}, "split": {"kind": "labelled"}}, "model": {"kind": "popularity"}}
    recipe = recipes.from_tree(override(tree, ["data.features.image.table=image_feat.npy"]), "the test")
    with pytest.raises(UserError, match=r"data\.features\.image: the source has a feature table of this name already"):
        stores.of_recipe(recipe, Places(tmp_path, case))


def test_a_store_is_found_again_by_its_own_features_alone(tmp_path):
    places, recipe = Places(tmp_path / "home", tmp_path / "raw"), described(tmp_path, IMAGE)
    folder = stores.of_recipe(recipe, places).folder
    assert stores.prepared_before(recipe, places.home) == folder
    assert stores.prepared_before(described(tmp_path), places.home) is None
    assert stores.prepared_before(described(tmp_path, IMAGE, SOUND), places.home) is None
    plain = stores.of_recipe(described(tmp_path), places).folder
    assert stores.prepared_before(described(tmp_path), places.home) == plain != folder
    assert stores.prepared_before(recipe, places.home) == folder


def test_a_carried_store_may_have_more_features_than_the_recipe_names_but_no_fewer(tmp_path):
    made = stores.of_recipe(described(tmp_path, IMAGE), Places(tmp_path / "home", tmp_path / "raw"))
    carried = Places(tmp_path / "elsewhere", store=made.folder)
    for recipe in (described(tmp_path), described(tmp_path, "data.features.image.table=of-another-machine.npy")):
        assert stores.of_recipe(recipe, carried).features.keys() == {"image"}
    with pytest.raises(UserError, match=r"names data\.features\.sound, and the store .* has the features image alone"):
        stores.of_recipe(described(tmp_path, IMAGE, SOUND), carried)
    plain = stores.of_recipe(described(tmp_path), Places(tmp_path / "home", tmp_path / "raw"))
    with pytest.raises(UserError, match=r"data\.features\.image, and the store .* has no features"):
        stores.of_recipe(described(tmp_path, IMAGE), Places(tmp_path, store=plain.folder))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.features.Image.table=a.npy", r"data: features: a table cannot be called 'Image': expected a letter"),
        ("data.features.image.file=a.npy", r"data\.features\.image\.file: no such key"),
        ("data.features.image={}", r"data\.features\.image\.table: needed, but not given"),
        ("data.features.image=a.npy", r"data\.features\.image: expected a mapping"),
        ("data.features=a.npy", r"data\.features: expected a mapping"),
    ],
)
def test_mistakes_in_the_names_of_features_are_told(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        described(tmp_path, wrong)


def test_a_recipe_with_features_survives_the_round_trip(tmp_path):
    recipe = described(tmp_path, IMAGE, SOUND)
    assert recipes.from_tree(parse(dump(recipe), "dump"), "dump") == recipe
