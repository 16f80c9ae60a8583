"""A store whose files lie in shards: the same bytes, batches, lists and losses, and no memory but for what is read."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.test_prepare import simulated
from data.test_spark import alone
from turborec import recipes, run
from turborec.data.export import rows_of
from turborec.data.loader import Batches, TrainingBatches, evaluation_batches
from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import Columnar, RawTable, RawTables
from turborec.data.shards import UNIT, divide, is_sharded, mapped, mapped_array
from turborec.data.split import LeaveOneOut
from turborec.data.store import FORMAT, Ids, Store, open_store, sha256
from turborec.errors import UserError
from turborec.stores import Places

SELECT = {"user": "user", "item": "item", "time": "time"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """Half a million events as a whole store and as one of shards of one MiB."""
    folder = tmp_path_factory.mktemp("stores")
    simulated(folder / "events.parquet", 500_000)
    raw = RawTables(RawTable((folder / "events.parquet",), Columnar(), SELECT))
    made = (prepare(raw, {}, Prepare(shard_mb=mb), LeaveOneOut(), folder / str(mb)) for mb in (None, 1))
    whole, sharded = map(open_store, made)
    return whole, sharded


def joined(folder: Path, name: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}.[0-9]*")) or [folder / name])


def test_shards_are_the_bytes_of_the_whole_files_and_the_key_is_the_same(stores: tuple[Store, Store]) -> None:
    whole, sharded = stores
    assert sharded.key == whole.key and sharded.folder.name == whole.folder.name
    for name, fact in whole.card["files"].items():
        assert joined(sharded.folder, name) == (whole.folder / name).read_bytes()
        assert is_sharded(sharded.folder / name) == (fact["bytes"] > UNIT)
    assert max(fact["bytes"] for fact in sharded.card["files"].values()) == UNIT
    assert len([name for name in sharded.card["files"] if name.startswith("times.npy.")]) == 4
    assert {**sharded.card, "files": 0} == {**whole.card, "files": 0}


def test_every_batch_is_the_same(stores: tuple[Store, Store]) -> None:
    config = Batches(max_length=50, tokens=8192, overlap=10)
    plans = [TrainingBatches(store, config, seed=3).epoch(1) for store in stores]
    assert len(plans[0]) == len(plans[1]) > 50
    for step in range(len(plans[0])):
        one, other = (vars(plan.batch(step)) for plan in plans)
        assert all(
            torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(one.values(), other.values(), strict=True)
        )
    for one, other in zip(*(evaluation_batches(store, "test", config) for store in stores), strict=True):
        assert torch.equal(one.items, other.items) and torch.equal(one.times, other.times)


def test_whatever_reads_a_store_reads_shards(stores: tuple[Store, Store]) -> None:
    across = int(np.searchsorted(stores[0].histories.offsets, UNIT // 4))  # where the second shard of items begins
    users = np.arange(across - 20, across + 20)
    assert rows_of(stores[0], users).equals(rows_of(stores[1], users))
    for one, other in zip(*(vars(store.training()).values() for store in stores), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(*(store.item_counts() for store in stores))


def test_items_are_counted_in_blocks_as_in_one_piece(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores[1]
    expected = np.bincount(store.training().items, minlength=store.num_items + 1)
    for block in (997, 10**5, 10**9):
        monkeypatch.setattr("turborec.data.store.BLOCK", block)
        assert np.array_equal(store.item_counts(), expected)


TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 20, "tokens": 2048},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32, "dropout": 0.2},
    "train": {"epochs": 1, "precision": "float32"},
    "anchors": False,
}


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_a_training_comes_to_the_same_losses_weights_and_ranks(stores: tuple[Store, Store], tmp_path: Path) -> None:
    found: list[Any] = []
    for name, store in zip(("whole", "sharded"), stores, strict=True):
        places = Places(home=tmp_path, store=store.folder)
        done, results = run.train(recipes.from_tree(TREE, "the test"), tmp_path / name, places, steps=20)
        found.append((losses(tmp_path / name), [p.tolist() for p in done.model.parameters()], results["sasrec"].masked))
    assert len(found[0][0]) == 20 and found[0] == found[1]


@pytest.mark.slow
def test_two_processes_that_map_the_shards_come_to_the_same(stores: tuple[Store, Store], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(TREE))
    found = []
    for name, store in zip(("whole", "sharded"), stores, strict=True):
        command = [sys.executable, "-m", "turborec", "launch", "local", "--processes", "2", str(tmp_path / "recipe.yaml")]
        command += ["--out", str(tmp_path / name), "--store", str(store.folder), "--steps", "20", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        found.append((losses(tmp_path / name), json.loads(done.stdout)["results"]))
    assert len(found[0][0]) == 20 and found[0] == found[1]


def test_a_run_on_the_whole_store_goes_on_with_the_shards(stores: tuple[Store, Store], tmp_path: Path) -> None:
    tree = {"data": {"source": {"kind": "online_retail"}}, "model": {"kind": "popularity"}, "anchors": False}
    for store in stores:
        run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", Places(home=tmp_path, store=store.folder))


def altered(folder: Path, store: Store, name: str, content: bytes | None) -> Path:
    """A copy of a store in which one file has other content, or none."""
    folder.mkdir()
    for path in store.folder.iterdir():
        os.link(path, folder / path.name)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("how", ["lost", "cut short", "altered"])
def test_a_damaged_shard_is_named(stores: tuple[Store, Store], tmp_path: Path, how: str) -> None:
    content = (stores[1].folder / "times.npy.00002").read_bytes()
    broken = {"lost": None, "cut short": content[:-8], "altered": content[:-1] + bytes([content[-1] ^ 1])}[how]
    with pytest.raises(UserError, match=r"is damaged: times\.npy\.00002 .*prepare it again"):
        open_store(altered(tmp_path / "store", stores[1], "times.npy.00002", broken))


@pytest.mark.parametrize("name", ["items.npy.00000", "items.npy.00001"])
def test_shards_that_do_not_fit_together_are_refused(stores: tuple[Store, Store], tmp_path: Path, name: str) -> None:
    """Their card, which a stranger may have written, agrees with them."""
    content = (stores[1].folder / name).read_bytes()
    folder = altered(tmp_path / "store", stores[1], name, content[100:])
    card = json.loads((folder / "card.json").read_text())
    card["files"][name] = {"bytes": len(content) - 100, "sha256": sha256(folder / name)}
    del card["seal"]
    (folder / "card.json").unlink()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"items\.npy is no array of numbers .*prepare it again"):
        open_store(folder)


@pytest.mark.parametrize("size", [0, 1, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT, 3 * UNIT + 5])
def test_a_file_is_cut_where_it_must_be(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "a").write_bytes(content)
    divide(tmp_path / "a", UNIT)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert joined(tmp_path, "a") == content and len(sizes) == max(1, -(-size // UNIT))
    if is_sharded(tmp_path / "a"):
        assert sizes[:-1] == (len(sizes) - 1) * [UNIT]
        (tmp_path / "a.00000.bak").write_bytes(b"no shard")
        assert mapped(tmp_path / "a").tobytes() == content


def test_ids_are_found_in_shards(tmp_path: Path) -> None:
    names = sorted(str(number).encode() * 3 for number in range(150_000))
    Ids.write(tmp_path / "ids", names)
    for path in list(tmp_path.iterdir()):
        divide(path, UNIT)
    ids, rows = Ids(tmp_path / "ids"), [0, 1, 77_777, 149_999]
    assert is_sharded(tmp_path / "ids.bytes") and is_sharded(tmp_path / "ids.ends.npy")
    assert ids.raw(rows) == [names[row].decode() for row in rows]
    assert ids.find([*ids.raw(rows), "none"]).tolist() == [*rows, -1]


def test_a_map_lives_as_long_as_an_array_over_it_and_no_longer(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(500_000))
    divide(tmp_path / "a.npy", UNIT)
    part = mapped_array(tmp_path / "a.npy")[UNIT // 8 - 20 :][:40]
    assert part.tolist() == list(range(UNIT // 8 - 20, UNIT // 8 + 20))
    assert "a.npy.0" in Path("/proc/self/maps").read_text()
    del part
    assert "a.npy.0" not in Path("/proc/self/maps").read_text()


OPENED = """
    import sys
    from pathlib import Path
    import numpy as np
    from turborec.data.loader import Batches, TrainingBatches
    from turborec.data.store import open_store
    store = open_store(Path(sys.argv[1]), verify=False)
    batch = TrainingBatches(store, Batches(max_length=50, tokens=2048), 0).epoch(0).batch(0)
    print(int(batch.items.sum()), flush=True)
    sys.stdin.read()
"""

READ = """
    import sys
    from pathlib import Path
    from turborec.data.store import open_store
    store = open_store(Path(sys.argv[1]), verify=False)
    print(int(store.histories.items.sum()) + int(store.histories.times[::512].sum()), flush=True)
    sys.stdin.read()
"""


def forget(path: Path) -> None:
    """Let the system forget what it keeps of a file, so that it maps no more of it than it then reads."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def held(program: str, folder: Path, processes: int) -> list[tuple[float, float, float]]:
    """What processes that have done their work hold at the same time, in MiB.

    Their own memory; the maps of a folder's files, as if they were this process's alone; and its part of them.
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    try:
        assert len({process.stdout.readline() for process in started if process.stdout}) == 1
        return [measured(process.pid, folder) for process in started]
    finally:
        for process in started:
            process.communicate()


def measured(pid: int, folder: Path) -> tuple[float, float, float]:
    sums = {"Anonymous": 0, "Rss": 0, "Pss": 0}
    within = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            within = str(folder) in line
        elif name[:-1] in sums and (within or name == "Anonymous:"):
            sums[name[:-1]] += int(values[0])
    anonymous, alone_, part = (kib / 1024 for kib in sums.values())
    return anonymous, alone_, part


def large(folder: Path, users: int, each: int, shard_mb: int | None) -> Path:
    """A store of `users` histories of `each` events."""
    folder.mkdir()
    arrays = {"offsets": np.arange(users + 1) * each, "parts": np.full(users, 7, np.uint8)}
    arrays["cuts"] = arrays["offsets"][1:, None] - [2, 1]
    arrays["items"] = np.arange(users * each, dtype=np.int32) % 1000 + 1
    arrays["times"] = np.arange(users * each)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for path in list(folder.iterdir()) if shard_mb else ():
        divide(path, shard_mb * UNIT)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": ""} for path in folder.iterdir()}
    card = {"format": FORMAT, "key": "0", "counts": {"items": 1000}, "files": files}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shard_mb", [None, 64])
def test_opening_half_a_gigabyte_and_reading_a_batch_costs_the_pages_of_the_batch(tmp_path: Path, shard_mb: int | None) -> None:
    folder = large(tmp_path / "store", 2000, 20_000, shard_mb)
    for path in folder.iterdir():
        forget(path)
    ((own, mapped_in, _),) = held(OPENED, folder, 1)
    print(f"457 MiB of events: {own:.1f} MiB of memory in all, {mapped_in:.1f} MiB of the store's files")
    assert own < 250  # torch and the plan of 800,000 rows
    # A batch is 40 rows. The system maps 64 KiB around each page that is touched, of items and of times; cuts are read whole.
    assert mapped_in < 40 * 2 * 64 / 1024 + 2


def test_processes_share_what_they_have_read(tmp_path: Path) -> None:
    found = held(READ, large(tmp_path / "store", 100, 30_000, 8), 3)
    assert all(mapped_in >= 33 and part <= mapped_in / 2.5 for _, mapped_in, part in found), found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spark_writes_the_same_shards(tmp_path: Path) -> None:
    simulated(tmp_path / "events.parquet", 500_000)
    path = tmp_path / "events.parquet"
    cards = [alone(path, tmp_path / f"large {engine}", engine, SELECT, shard_mb=1) for engine in ("duckdb", "spark")]
    assert cards[0] == cards[1]
    assert "times.npy.00003" in cards[0]["files"]
