"""Every recipe whose raw files are among the real data sets prepares to the counts that are published for them."""

from pathlib import Path

import numpy as np
import pytest

from turborec import recipes, stores
from turborec.data.loader import TrainingBatches
from turborec.data.store import Store

GRAPHS = ("bpr", "dragon", "freedom", "lightgcn", "mmgcn", "vbpr")

# Users, items and events of all rows. Where the raw files are not a table below TURBOREC_DATA: the folder they are in.
PUBLISHED = {
    **{f"amazon-baby-mmrec-split/{model}": (19_445, 7_050, 160_792) for model in ("bpr", "lightgcn")},
    **{f"tiktok-mm/{model}": (9_308, 6_710, 68_722) for model in GRAPHS},
    "amazon-baby-mmrec-split/markov": (19_445, 7_050, 160_792),
    "amazon-beauty-2014/bert4rec": (22_363, 12_101, 198_502),
    "amazon-beauty-2014/recformer": (22_363, 12_101, 198_502),
    "amazon-beauty-2014/sasrec": (22_363, 12_101, 198_502),
    "amazon-cell-phones-2014/sasrec": (27_879, 10_321, 138_681),
    "amazon-games-2018/sasrec": (50_546, 16_859, 440_264),
    "amazon-games-2018/recformer-pre-training": (50_546, 16_859, 440_264),
    "amazon-gift-cards-2018/recformer": (458, 148, 2_972),
    "amazon-gift-cards-2018/sasrec": (458, 148, 2_972),
    "amazon-grocery-2014/sasrec": (14_681, 8_687, 121_892),
    "amazon-musical-instruments-2014/bert4rec": (1_429, 900, 10_261),
    "amazon-musical-instruments-2014/sasrec": (1_429, 900, 10_261),
    "amazon-sports-2014/sasrec": (35_598, 18_357, 296_337),
    "anime/markov": (5_000, 7_390, 520_609),
    "bert4rec-beauty/sasrec": (40_226, 54_542, 353_962),
    "globo-clicks/sasrec": (322_897, 46_033, 2_988_181),
    "ml-100k/markov": (943, 1_682, 100_000),
    "ml-100k/sasrec": (943, 1_682, 100_000),
    "ml-latest-small/sasrec": (610, 9_724, 100_836),
    "ml-latest-small/ss4rec": (610, 9_724, 100_836),
    "movietweetings/markov": (21_081, 12_611, 141_695),
    "movietweetings/ss4rec": (21_081, 12_611, 141_695),
    "otto-sample/markov": (20, 510, 862),
    "s3rec-lastfm/sasrec": (1_090, 3_646, 52_551),
    "s3rec-yelp/sasrec": (30_431, 20_033, 316_354),
    "sasrec-video/sasrec": (31_013, 23_715, 287_107),
    "steam-200k/markov": (12_393, 5_155, 200_000),
    "tiktok-mm/markov": (9_308, 6_710, 68_722),
    "wikipedia-edits/sasrec": (8_227, 1_000, 157_474),
}
RAW = {f"{name}/sasrec": f"{name}/raw" for name in ("amazon-gift-cards-2018", "ml-100k", "ml-latest-small")}
RAW |= {"ml-100k/markov": "ml-100k/raw", "ml-latest-small/ss4rec": "ml-latest-small/raw"}
RAW |= {"amazon-gift-cards-2018/recformer": "amazon-gift-cards-2018/raw"}

# These come with turborec, or are among the real data only in part or not at all.
ELSEWHERE = {
    "online-retail/sasrec",
    *(f"ml-1m/{model}" for model in ("bert4rec", "gru4rec", "lightgcn", "mmgcn", "sasrec", "ss4rec")),
    *("simulated-v-54k/sasrec", "simulated-v-160k/bert4rec-130m"),
    *(f"amazon-electronics/bert4rec-{size}" for size in ("5m", "85m", "85m-tied", "130m", "130m-tied", "430m", "430m-tied")),
    *("ml-20m/sasrec", "ml-20m/bert4rec", "ml-32m/sasrec"),
    *(f"ml-latest-small/{model}" for model in GRAPHS),  # their tables of features are computed first
    *(f"music4all/{model}" for model in ("mmgcn", "dragon", "lightgcn")),
    *(f"mind-small/{model}" for model in ("recformer", "recformer-5m", "recformer-minilm", "recformer-base", "sasrec")),
    *(f"amazon-{name}/sasrec-texts" for name in ("beauty-2014", "games-2018", "gift-cards-2018")),
    "ml-1m/sasrec-texts",
}


def prepared(name: str, overrides: list[str], folder: Path, home: Path) -> Store:
    return stores.of_recipe(recipes.load(name, overrides), stores.Places(home, folder / RAW[name] if name in RAW else None))


def test_no_recipe_is_forgotten() -> None:
    assert {*PUBLISHED, *ELSEWHERE} == {*recipes.shipped()}


@pytest.mark.data
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_prepares_to_the_published_counts_and_then_to_its_own_core(
    name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(data_folder))
    store = prepared(name, ["data.prepare={bad_rows: 0}"], data_folder, tmp_path)
    assert (store.num_users, store.num_items, len(store.histories.items)) == PUBLISHED[name]
    core = recipes.load(name).data.prepare
    kept = prepared(name, [], data_folder, tmp_path)
    assert np.diff(kept.histories.offsets).min() >= core.min_user_events
    assert np.bincount(kept.histories.items)[1:].min() >= core.min_item_events
    assert all(len(kept.users_of(part)) > 0 for part in ("train", "validation", "test"))


@pytest.mark.data
@pytest.mark.parametrize("name", ["amazon-beauty-2014/sasrec", "amazon-beauty-2014/bert4rec", "ml-1m/sasrec"])
def test_batches_are_full(name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(data_folder))
    columns = "user: user_id, item: item_id, order: position"
    given = [f"data.source={{kind: table, events: ml-1m/interactions.parquet, {columns}}}"] if name.startswith("ml-1m") else []
    recipe = recipes.load(name, given)
    store = prepared(name, given, data_folder, tmp_path)
    batches = TrainingBatches(store, recipe.batches, recipe.seed)
    assert len(batches.widths) <= recipe.batches.shapes
    assert min(batches.epoch(number).fill for number in range(3)) >= 0.95
