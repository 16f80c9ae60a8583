import shutil
from pathlib import Path

import numpy as np
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.split import Labelled
from turborec.data.store import PARTS, open_store
from turborec.errors import UserError
from turborec.sources.tiktok import Config

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiktok" / "three-users"


def test_files_are_found_side_by_side_in_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    raw, inside, data = tmp_path / "raw", tmp_path / "raw" / "tiktok-mm", tmp_path / "data" / "tiktok-mm"
    raw.mkdir()
    shutil.copy(FIXTURE / "interactions.parquet", raw)
    with pytest.raises(UserError) as caught:
        Config().download(raw)
    for part in ("audio_feat.npy, image_feat.npy side by side", str(raw), str(inside), str(data), "TURBOREC_DATA"):
        assert part in str(caught.value)
    for place in (data, inside):
        shutil.copytree(FIXTURE, place)
        tables = Config().parse(raw)
        assert tables.events.paths == (place / "interactions.parquet",)
        assert {name: table.path for name, table in tables.features.items()} == {
            "audio": place / "audio_feat.npy",
            "image": place / "image_feat.npy",
        }


@pytest.mark.data
def test_the_real_videos_have_the_published_counts(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(data_folder))
    raw = Config().parse(tmp_path / "raw")
    store = open_store(prepare(raw, {"kind": "tiktok"}, Prepare(bad_rows=0), Labelled(), tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == (9_308, 6_710, 68_722)
    assert {name: fact["width"] for name, fact in store.card["features"].items()} == {"audio": 128, "image": 128}
    everybody = np.arange(store.num_users)  # some have no event to train on and take part in nothing
    sizes = {part: int(np.diff(store.span(part, everybody), axis=0).sum()) for part in PARTS}
    assert sizes == {"train": 59_541, "validation": 3_051, "test": 6_130}
    rows = [int(text) for text in store.item_ids.raw(range(store.num_items))]
    for name, table in store.features.items():
        whole = np.load(raw.features[name].path).astype(np.float32)
        assert np.array_equal(table[1:], whole[rows]) and np.isnan(table[0]).all()
