import bz2
import gzip
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.split import LeaveOneOut
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.recipe import validate
from turborec.sources.music4all import TERMS, Config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "music4all"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "music4all_twin.py"
sys.path.append(str(SCRIPT.parent))
twin = import_module("music4all_twin")

SMALL = twin.Settings(seed=3, users=40, tracks=60, interactions=600, widths=(("resnet", 5), ("lyrics_tf-idf", 3)))
MIDDLING = twin.Settings(seed=4, users=300, tracks=400, interactions=9000, widths=(("resnet", 64), ("ivec256", 32)))
OTHER_SIZES = ["--users", "10", "--tracks", "12", "--interactions", "64", "--features", "resnet:2"]


def config(**given: Any) -> Config:
    return validate(Config, given, "the test")


def prepared(source: Config, folder: Path, home: Path, **settings: Any) -> Store:
    given = {"bad_rows": 0, **settings}
    return open_store(prepare(source.parse(folder), {"kind": "music4all"}, Prepare(**given), LeaveOneOut(), home))


def items(store: Store) -> dict[str, dict[str, str | None]]:
    return {row.pop("item"): row for row in pq.read_table(store.folder / "items.parquet").to_pylist()}


def refused(source: Config, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        source.download(folder)
    with pytest.raises(UserError) as again:
        source.parse(folder)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def lines(path: Path) -> list[str]:
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        return file.read().removesuffix("\n").split("\n")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    twin.write(folder, SMALL, "none")
    return folder


def test_onion_s_listens_are_events_with_their_seconds(tmp_path: Path) -> None:
    store = prepared(config(), FIXTURES / "onion", tmp_path)
    assert store.card["counts"] == store.card["counts"] | {"users": 10, "items": 12, "events": 77}
    rows = [line.split("\t") for line in lines(FIXTURES / "onion" / "userid_trackid_timestamp.tsv.gz")[1:]]
    of_first = sorted(np.datetime64(time, "ms").astype(int) for user, _, time in rows if user == "1")
    assert store.user_ids.raw([0]) == ["1"]
    assert store.histories.times[: store.histories.offsets[1]].tolist() == of_first
    assert store.card["time_unit"] == "milliseconds"
    once = prepared(config(), FIXTURES / "onion", tmp_path, duplicates="first").card["counts"]
    assert (once["events"], once["dropped"]["duplicates"]) == (64, 13)


def test_counts_are_values_of_events_without_a_time(tmp_path: Path) -> None:
    store = prepared(config(events="counts"), FIXTURES / "onion", tmp_path, values=True)
    assert store.card["counts"]["events"] == 64
    assert set(store.histories.times.tolist()) == {UNKNOWN_TIME}
    listens = [int(line.split("\t")[2]) for line in lines(FIXTURES / "onion" / "userid_trackid_count.tsv")[1:]]
    assert store.card["values"] == {"known": 64, "least": 1.0, "greatest": float(max(listens))}
    assert sum(listens) == 77


def test_music4all_itself_tells_listens_to_the_minute_and_what_the_tracks_are(tmp_path: Path) -> None:
    store = prepared(config(layout="base"), FIXTURES / "base", tmp_path)
    assert store.card["counts"] == store.card["counts"] | {"users": 4, "items": 5, "events": 21}
    first = np.datetime64("2019-02-20T09:58", "ms").astype(int)
    assert store.histories.times[0] == first
    assert prepared(config(layout="base"), FIXTURES / "base", tmp_path, duplicates="first").card["counts"]["events"] == 12
    assert items(store) == {
        "0009fFIM1eYThaPg": described("The Lanterns", 'Harbour "Lights', "Quays", "indie rock|pop", None, "en", "2010"),
        "00CH4HJdxQQQbJfu": described(
            "Aurelia Voss", "Glass", "First, Second", "electronic", "female vocalists|electronic", "en", "2011"
        ),
        "0B6BeEUd6UwFlbsE": described("Kilo & Sons", '12" Mix', None, "house", "house|dance", None, "2012"),
        "0ZrQ7dm1fGn7yXaT": described("Nåtttåg", "Vår", "Norr", "folk|ambient|nordic", "folk", "sv", "2013"),
        "16x0Dz3qyVkP9LmC": described("The Lanterns", "Harbour Lights (Live)", "Quays", None, "live", "en", "2014"),
    }
    assert store.card["source"]["terms"] == TERMS


def described(*told: str | None) -> dict[str, str | None]:
    return dict(zip(("artist", "title", "album", "genres", "tags", "language", "year"), told, strict=True))


def test_tracks_without_their_information_have_what_the_other_files_tell(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "base", tmp_path / "raw")
    for name in ("id_information.csv", "id_tags.csv", "id_metadata.csv"):
        (folder / name).unlink()
    told = items(prepared(config(layout="base"), folder, tmp_path))
    assert told["0ZrQ7dm1fGn7yXaT"] == {"genres": "folk|ambient|nordic", "language": "sv"}
    assert told["16x0Dz3qyVkP9LmC"] == {"genres": None, "language": None}  # not in the first table there is
    for name in ("id_genres.csv", "id_lang.csv"):
        (folder / name).unlink()
    assert config(layout="base").parse(folder).items is None
    assert prepared(config(layout="base"), folder, tmp_path).num_items == 5


def test_a_list_whose_column_is_missing_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "base", tmp_path / "raw")
    (folder / "id_tags.csv").write_text("id\ttag\n0009fFIM1eYThaPg\tindie\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"id_tags\.csv has no column 'tags' \(did you mean 'tag'\?\): expected it beside id"):
        config(layout="base").parse(folder)


def test_features_are_called_as_their_files_and_read_only_when_named() -> None:
    onion = FIXTURES / "onion"
    assert config().parse(onion).features == {}
    named = config(features=["resnet", "lyrics_tf-idf", "lyrics_word2vec"]).parse(onion).features
    assert {name: table.path.name for name, table in named.items()} == {
        "resnet": "id_resnet.tsv.gz",
        "lyrics_tf_idf": "id_lyrics_tf-idf.tsv",
        "lyrics_word2vec": "id_lyrics_word2vec.tsv.bz2",
    }
    assert config(features=["lyrics_tf_idf"]).parse(onion).features == {"lyrics_tf_idf": named["lyrics_tf_idf"]}


def test_onion_s_features_serve_music4all_itself(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "base", tmp_path / "raw")
    for name in ("id_ivec256.tsv.bz2", "id_ivec256.tsv"):
        (folder / name).touch()
    found = config(layout="base", features=["ivec256"]).parse(folder).features
    assert found["ivec256"].path == folder / "id_ivec256.tsv"  # the one that need not be unpacked


def test_features_that_are_not_there_are_refused_with_the_closest_names(tmp_path: Path) -> None:
    onion = shutil.copytree(FIXTURES / "onion", tmp_path / "raw")
    assert "no features 'resnett' (did you mean 'resnet'?)" in refused(config(features=["resnett"]), onion)
    assert "(known: lyrics_tf_idf, lyrics_word2vec, resnet)" in refused(config(features=["xyz"]), onion)
    (onion / "id_tags_dict.tsv.bz2").touch()
    assert "id_tags_dict holds texts" in refused(config(features=["tags_dict"]), onion)
    for path in onion.glob("id_*.tsv*"):
        path.unlink()
    assert "no file id_*.tsv at all, get them from https://zenodo.org" in refused(config(features=["resnet"]), onion)


def test_features_named_twice_are_refused() -> None:
    with pytest.raises(UserError, match="features names 'lyrics_tf_idf' twice"):
        config(features=["lyrics_tf-idf", "lyrics_tf_idf"])


def test_counts_of_music4all_itself_are_refused() -> None:
    with pytest.raises(UserError, match="only the layout onion has counts"):
        config(layout="base", events="counts")


@pytest.mark.parametrize(
    ("given", "name", "address"),
    [
        ({}, "userid_trackid_timestamp.tsv", "https://zenodo.org/records/6609677"),
        ({"events": "counts"}, "userid_trackid_count.tsv", "https://zenodo.org/records/6609677"),
        ({"layout": "base"}, "listening_history.csv", "https://sites.google.com/view/contact4music4all"),
    ],
)
def test_missing_events_say_where_to_ask_for_them_and_where_to_put_them(
    given: dict[str, str], name: str, address: str, tmp_path: Path
) -> None:
    said = refused(config(**given), tmp_path / "raw")
    for part in (f"Expected {name}", address, str(tmp_path / "raw"), str(tmp_path / "data" / "music4all")):
        assert part in said


def test_events_of_the_other_layout_are_pointed_at(tmp_path: Path) -> None:
    assert "listening_history.csv is there, for data.source.layout=base" in refused(config(), FIXTURES / "base")
    shutil.copy(FIXTURES / "onion" / "userid_trackid_count.tsv", tmp_path)
    assert "for data.source.layout=onion data.source.events=counts" in refused(config(), tmp_path)


@pytest.mark.parametrize("place", ["raw", "raw/music4all", "data/music4all", "music4all"])
def test_files_are_found_in_the_folders_there_are(place: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "base", tmp_path / place)
    assert config(layout="base").parse(tmp_path / "raw").events.paths[0].parent == tmp_path / place


def test_another_folder_may_be_named(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "onion", tmp_path / "data" / "twins" / "one")
    found = config(folder="twins/one").parse(tmp_path / "raw")
    assert found.events.paths[0].parent == tmp_path / "data" / "twins" / "one"


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "listening_history.csv").write_text("user\ttrack\ttimestamp\n")
    with pytest.raises(UserError, match="has no column 'song'"):
        prepared(config(layout="base"), tmp_path, tmp_path)


def test_a_time_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    text = (FIXTURES / "base" / "listening_history.csv").read_text()
    (tmp_path / "listening_history.csv").write_text(text + "user_007XIjOr\t0009fFIM1eYThaPg\tsoon\n")
    with pytest.raises(UserError, match=r"1 of 22 rows are bad.*\n  listening_history\.csv:23: time is not an ISO 8601 time"):
        prepared(config(layout="base"), tmp_path, tmp_path)


def test_what_was_generated_says_so_on_the_card(small: Path, tmp_path: Path) -> None:
    told = prepared(config(), small, tmp_path).card["source"]["terms"]
    assert told.startswith("Generated, not Music4All: benchmarks/music4all_twin.py drew this from seed 3: 40 users, 60 tracks")


def test_twin_has_onion_s_files_and_columns(small: Path) -> None:
    headers = {path.name: lines(path)[0] for path in small.iterdir() if path.name != "GENERATED.txt"}
    assert headers == {
        "userid_trackid_timestamp.tsv": "user_id\ttrack_id\ttimestamp",
        "userid_trackid_count.tsv": "user_id\ttrack_id\tcount",
        "id_resnet.tsv": "id\t0\t1\t2\t3\t4",
        "id_lyrics_tf-idf.tsv": "id\t0\t1\t2",
        "id_information.csv": "id\tartist\tsong\talbum_name",
        "id_genres.csv": "id\tgenres",
    }
    number = r"-?\d+\.\d{1,2}|-?\d+"
    for name, pattern in {
        "userid_trackid_timestamp.tsv": r"[1-9]\d*\t[0-9A-Za-z]{16}\t20(18|19|20)-\d\d-\d\d \d\d:\d\d:\d\d",
        "userid_trackid_count.tsv": r"[1-9]\d*\t[0-9A-Za-z]{16}\t[1-9]\d*",
        "id_resnet.tsv": rf"[0-9A-Za-z]{{16}}(\t({number})){{5}}",
    }.items():
        text = b"\n".join((small / name).read_bytes().split(b"\n")[1:-1]).decode()
        assert (small / name).read_bytes().endswith(b"\n") and b"\r" not in (small / name).read_bytes()
        assert all(map(re.compile(pattern).fullmatch, text.split("\n"))), name


def test_twin_has_the_sizes_it_was_asked_for(small: Path, tmp_path: Path) -> None:
    pairs = [tuple(line.split("\t")) for line in lines(small / "userid_trackid_count.tsv")[1:]]
    assert len(pairs) == len({(user, track) for user, track, _ in pairs}) == 600
    assert Counter(user for user, _, _ in pairs).keys() == {str(user) for user in range(1, 41)}
    assert min(Counter(user for user, _, _ in pairs).values()) >= twin.LEAST
    listens = [line.split("\t") for line in lines(small / "userid_trackid_timestamp.tsv")[1:]]
    assert Counter((user, track) for user, track, _ in listens) == {(user, track): int(n) for user, track, n in pairs}
    assert 1.3 < len(listens) / 600 < 1.7
    assert listens == sorted(listens, key=lambda row: (-int(row[0]), row[2]), reverse=True)
    tracks = {track for _, track, _ in pairs}
    for name in ("id_resnet.tsv", "id_lyrics_tf-idf.tsv", "id_information.csv", "id_genres.csv"):
        assert {line.split("\t")[0] for line in lines(small / name)[1:]} == tracks and len(tracks) == 60
    store = prepared(config(), small, tmp_path, duplicates="first")
    assert (store.num_users, store.num_items, len(store.histories.items)) == (40, 60, 600)


def test_twin_is_the_same_bytes_for_a_seed_however_often_it_is_written(small: Path, tmp_path: Path) -> None:
    twin.write(tmp_path / "again", SMALL, "none")
    assert contents(tmp_path / "again") == contents(small)
    other = twin.Settings(SMALL.seed + 1, SMALL.users, SMALL.tracks, SMALL.interactions, SMALL.listens, SMALL.widths)
    twin.write(tmp_path / "other", other, "none")
    changed = [name for name, text in contents(small).items() if (tmp_path / "other" / name).read_bytes() == text]
    assert changed == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("packing", ["gz", "bz2"])
def test_twin_holds_the_same_when_it_is_packed(packing: str, small: Path, tmp_path: Path) -> None:
    twin.write(tmp_path / "packed", SMALL, packing)
    for path in small.glob("*.tsv"):
        assert lines(tmp_path / "packed" / f"{path.name}.{packing}") == lines(path)
    if packing == "gz":
        twin.write(tmp_path / "again", SMALL, packing)
        assert contents(tmp_path / "again") == contents(tmp_path / "packed")


def test_twin_as_the_command_writes_it_is_read_as_it_is(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "data" / "twin"), "--seed", "5", *OTHER_SIZES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "data" / "twin").iterdir()}
    assert names >= {"userid_trackid_timestamp.tsv.bz2", "userid_trackid_count.tsv.bz2", "id_resnet.tsv.bz2"}
    store = prepared(config(folder="twin"), tmp_path, tmp_path, duplicates="first")
    assert store.card["counts"] == store.card["counts"] | {"users": 10, "items": 12, "events": 64}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interactions", "20"], "can have 62 to 72 interactions, not 20"),
        (["--interactions", "1000"], "can have 62 to 72 interactions, not 1000"),
        (["--listens", "0.5"], "listened to once at least"),
        (["--features", "resnet:0"], "has a number at least"),
        (["--features", "resnet"], "NAME:WIDTH"),
    ],
)
def test_twin_that_cannot_be_drawn_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "twin"), *OTHER_SIZES, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "twin").exists()


def test_twin_s_users_who_have_heard_nearly_all_are_given_the_rest() -> None:
    full = twin.Settings(seed=6, users=10, tracks=12, interactions=72, widths=())
    drawn = twin.world(full)
    session, track = twin.interactions(drawn, full)
    assert len(np.unique(drawn.session_user[session] * full.tracks + track)) == len(track) == 72


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("middling")
    twin.write(folder, MIDDLING, "none")
    return folder


@pytest.mark.parametrize("name", ["resnet", "ivec256"])
def test_twin_s_features_foretell_tracks_that_their_user_did_not_show(name: str, middling: Path) -> None:
    """Each track of every fifth one is hidden: the mean feature of a user's others ranks what he heard of the hidden ones."""
    likeness, heard = hidden_tracks(middling, name)
    shares = [share_below(row, hits) for row, hits in zip(likeness, heard, strict=True) if 0 < hits.sum() < len(hits)]
    assert len(shares) > 200
    assert np.mean(shares) > 0.65
    mixed = np.random.default_rng(0).permutation(heard.shape[1])
    chance = [share_below(row, hits[mixed]) for row, hits in zip(likeness, heard, strict=True) if 0 < hits.sum() < len(hits)]
    assert abs(np.mean(chance) - 0.5) < 0.05


def hidden_tracks(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """How alike each user's shown tracks are to the hidden ones [U, H], and whether he heard these [U, H]."""
    rows = [line.split("\t") for line in lines(folder / f"id_{name}.tsv")[1:]]
    place = {row[0]: number for number, row in enumerate(rows)}
    features = np.array([row[1:] for row in rows], dtype=float)
    features = features - features.mean(axis=0)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    heard = np.zeros((MIDDLING.users, MIDDLING.tracks), dtype=bool)
    for user, track, _ in (line.split("\t") for line in lines(folder / "userid_trackid_count.tsv")[1:]):
        heard[int(user) - 1, place[track]] = True
    hidden = np.arange(MIDDLING.tracks) % 5 == 0
    return (heard[:, ~hidden] @ features[~hidden]) @ features[hidden].T, heard[:, hidden]


def share_below(scores: np.ndarray, hits: np.ndarray) -> float:
    """Of all pairs of a hit and another, the share in which the hit scores higher."""
    return float(np.mean(scores[hits][:, None] > scores[~hits][None, :]))


def test_twin_s_popularity_has_a_long_tail_and_its_tastes_drift(middling: Path) -> None:
    drawn = twin.world(MIDDLING)
    _, track = twin.interactions(drawn, MIDDLING)
    counts = np.sort(np.bincount(track, minlength=MIDDLING.tracks))[::-1]
    assert counts[-1] >= 1 and counts[: len(counts) // 10].sum() > 0.2 * counts.sum()
    order = np.lexsort((drawn.session_start, drawn.session_user))
    owner, moods = drawn.session_user[order], drawn.moods[order]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(starts[1:], len(owner)) - 1
    enough = ends - starts >= 8
    near = [(moods[s] @ moods[s + 1], moods[s] @ moods[e]) for s, e in zip(starts[enough], ends[enough], strict=True)]
    assert np.mean(near, axis=0)[0] > np.mean(near, axis=0)[1] + 0.02
