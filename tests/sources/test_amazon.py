import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from turborec.data.prepare import Prepare, prepare
from turborec.data.split import LeaveOneOut
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.sources.amazon import EDITIONS, Config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "amazon"


def prepared(config: Config, folder: Path, home: Path, bad_rows: float = 0) -> Store:
    raw = config.parse(folder)
    return open_store(prepare(raw, {"kind": "amazon"}, Prepare(bad_rows=bad_rows), LeaveOneOut(), home))


def items(store: Store) -> dict[str, dict[str, str | None]]:
    return {row.pop("item"): row for row in pq.read_table(store.folder / "items.parquet").to_pylist()}


def test_products_of_2014_are_read_from_what_python_printed(tmp_path: Path) -> None:
    store = prepared(Config(edition=2014, category="Beauty"), FIXTURES / "2014", tmp_path)
    assert (store.num_users, store.num_items, len(store.histories.items)) == (4, 5, 20)
    told = items(store)
    assert told["B000INV001"] == {
        "title": 'Brush, 2 "heads"',
        "brand": "Invented",
        "categories": "Beauty|Tools|Brushes|Beauty|Gifts",
        "price": "12.99",
        "description": "A brush.\nIt's soft.",
    }
    assert (told["B000INV002"]["title"], told["B000INV002"]["price"]) == ("Crème", "5")
    assert told["B000INV004"] == dict.fromkeys(told["B000INV001"]) | {"title": "Comb"}
    assert told["B000INV005"] == dict.fromkeys(told["B000INV001"])  # nobody describes it
    assert "B000INV999" not in told


def test_products_of_2018_have_features_and_the_first_description_counts(tmp_path: Path) -> None:
    told = items(prepared(Config(edition=2018, category="Software"), FIXTURES / "2018", tmp_path))
    assert told["B00INV0181"] == {
        "title": "Game of Dots",
        "brand": "Invented",
        "categories": "Software|Games",
        "price": "$4.99",
        "description": "A game.|For two.",
        "features": "Fun|Short",
    }
    assert told["B00INV0183"]["title"] == "Painter"


def test_reviews_keep_their_day_and_rating(tmp_path: Path) -> None:
    config = Config(edition=2018, category="Gift_Cards", reviews="all", items=False)
    raw = config.parse(FIXTURES / "2018-events")
    assert raw.items is None and raw.events.paths[0].name == "Gift_Cards.json" and "value" in raw.events.select
    store = prepared(config, FIXTURES / "2018-events", tmp_path)
    assert int(store.histories.times[0]) == 1_483_228_800 and (store.histories.times % 86_400 == 0).all()


def test_bad_lines_are_set_aside_with_file_and_line(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "2014", tmp_path / "raw")
    reviews = tmp_path / "raw" / "reviews_Beauty_5.json"
    lines = reviews.read_text().splitlines()
    lines[3:3] = ["{'reviewerID': 'A', 'asin': 'B'}", '{"reviewerID": "A", "unixReviewTime": 1}']
    reviews.write_text("\n".join(lines))
    products = tmp_path / "raw" / "meta_Beauty.json.gz"
    products.write_bytes(gzip.compress(gzip.decompress(products.read_bytes()) + b"{'asin': __import__('os').getcwd()}\n"))
    config = Config(edition=2014, category="Beauty")
    with pytest.raises(UserError, match=r"reviews_Beauty_5\.json:4: not JSON.*\n  reviews_Beauty_5\.json:5: item is empty"):
        prepared(config, tmp_path / "raw", tmp_path)
    quarantine = prepared(config, tmp_path / "raw", tmp_path, bad_rows=0.5).folder / "quarantine.tsv"
    assert [line.split("\t")[:3] for line in quarantine.read_text().splitlines()[1:]] == [
        ["reviews_Beauty_5.json", "4", "not JSON"],
        ["reviews_Beauty_5.json", "5", "item is empty"],
        ["meta_Beauty.json.gz", "6", "not a Python literal"],
    ]


def test_category_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    with pytest.raises(ValidationError, match=r"the edition of 2018 has no 'Gift_Card' \(did you mean 'Gift_Cards'\?\)"):
        Config(edition=2018, category="Gift_Card")
    with pytest.raises(ValidationError, match="the edition of 2018 has no 'Beauty'"):
        Config(edition=2018, category="Beauty")


def test_missing_files_are_named_with_their_places(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Config(edition=2014, category="Baby").parse(tmp_path)
    for part in ("reviews_Baby_5.json and meta_Baby.json", str(tmp_path / "2014")):
        assert part in str(caught.value)


def copies(folder: Path) -> str:
    """The address of a folder that is laid out as the collectors' is and holds the fixture of 2014."""
    edition = EDITIONS[2014]
    for name in (edition.core, edition.products):
        source = FIXTURES / "2014" / Path(name.format("Beauty")).name
        packed = source if source.exists() else source.with_name(f"{source.name}.gz")
        target = folder / f"{name.format('Beauty')}.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(packed.read_bytes() if packed.suffix == ".gz" else gzip.compress(packed.read_bytes()))
    return folder.as_uri()


def test_what_does_not_lie_there_is_fetched_into_the_folder_of_the_edition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(edition=2014, category="Beauty", address=copies(tmp_path / "web"))
    config.download(tmp_path / "raw")
    said = capsys.readouterr().err
    assert "no licence is stated" in said and "Nobody states a checksum" in said
    assert {path.name for path in (tmp_path / "raw" / "2014").glob("*.gz")} == {
        "reviews_Beauty_5.json.gz",
        "meta_Beauty.json.gz",
    }
    shutil.rmtree(tmp_path / "web")
    config.download(tmp_path / "raw")
    assert prepared(config, tmp_path / "raw", tmp_path).num_users == 4


def test_file_that_lies_there_is_not_fetched(tmp_path: Path) -> None:
    address = copies(tmp_path / "web")
    shutil.copy(FIXTURES / "2014" / "meta_Beauty.json.gz", tmp_path / "meta_Beauty.json.gz")
    Config(edition=2014, category="Beauty", address=address).download(tmp_path)
    assert [path.name for path in (tmp_path / "2014").glob("*.gz")] == ["reviews_Beauty_5.json.gz"]


@pytest.mark.data
def test_gift_cards_prepare_to_the_published_counts(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "amazon-gift-cards-2018"
    store = prepared(Config(edition=2018, category="Gift_Cards"), folder / "raw", tmp_path)
    assert (store.num_users, store.num_items, len(store.histories.items)) == (458, 148, 2_972)
    assert store.card["rows"]["items"]["rows"] == 1_547
    assert (int(store.histories.times.min()), int(store.histories.times.max())) == (1_327_968_000, 1_534_896_000)
    table = pq.read_table(folder / "items.parquet").to_pylist()
    expected = {row["item_id"]: row for row in reversed(table)}  # the first row of an item counts
    for item, told in items(store).items():
        row = expected[item]
        assert told["title"] == (row["title"] or None)
        assert told["categories"] == ("|".join(row["category"]) or None)
        assert told["description"] == ("|".join(row["description"]) or None)
    reviews = pq.read_table(folder / "reviews.parquet")
    asked = store.user_ids.raw([7])[0]
    mask = np.asarray(reviews["user_id"]) == asked
    span = slice(*store.histories.offsets[7:9].tolist())
    assert sorted(np.asarray(reviews["timestamp"])[mask]) == store.histories.times[span].tolist()


@pytest.mark.data
def test_musical_instruments_written_as_raw_reviews_prepare_to_the_published_counts(data_folder: Path, tmp_path: Path) -> None:
    import json

    rows = pq.read_table(data_folder / "amazon-musical-instruments-2014" / "reviews.parquet").to_pylist()
    with gzip.open(tmp_path / "reviews_Musical_Instruments_5.json.gz", "wt", encoding="utf-8") as file:
        for row in rows:
            raw = {"reviewerID": row["user_id"], "asin": row["item_id"], "helpful": [row["helpful_yes"], row["helpful_total"]]}
            raw |= {"reviewText": row["review_text"], "overall": float(row["rating"]), "unixReviewTime": row["timestamp"]}
            file.write(json.dumps(raw) + "\n")
    store = prepared(Config(edition=2014, category="Musical_Instruments", items=False), tmp_path, tmp_path)
    assert (store.num_users, store.num_items, len(store.histories.items)) == (1_429, 900, 10_261)
