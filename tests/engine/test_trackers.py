"""Trackers are told what `metrics.jsonl` holds, once and in order, across interruptions; and cannot stop a run."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from turborec.engine import trackers
from turborec.engine.log import MetricsLog, read_metrics
from turborec.engine.trackers import Tracking, remembered
from turborec.errors import UserError

PROGRAM = Path(__file__).with_name("tracked.py")

Told = list[tuple[int, dict[str, float]]]


class Fake:
    """A tracker that remembers what it was told, and fails from a step on."""

    told: Told
    opened: list[object]
    fails_at = 10**9

    def __init__(self, known: object) -> None:
        Fake.opened.append(known)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        if step >= Fake.fails_at:
            raise ConnectionError("the network is down")
        Fake.told.append((step, {f"{kind}/{name}": value for name, value in values.items()}))

    def close(self) -> None:
        Fake.told.append((-1, {}))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.told, Fake.opened, Fake.fails_at = [], [], 10**9
    monkeypatch.setitem(trackers._KINDS, "fake", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    return Fake


def write(folder: Path, steps: range, resumed: int = 0, kinds: tuple[str, ...] = ("fake",)) -> None:
    with MetricsLog(folder, resumed, Tracking(kinds, "shop")) as metrics:
        for step in steps:
            metrics.write("train", step, {"loss": 1 / step, "note": "text"})
            if step % 3 == 0:
                metrics.write("epoch", step, {"epoch": step // 3})


def steps_of(told: Told, name: str = "train/loss") -> list[int]:
    return [step for step, values in told if name in values]


def test_a_tracker_is_told_the_numbers_in_order_and_closed(tmp_path: Path, fake: type[Fake]) -> None:
    write(tmp_path, range(1, 4))
    first, second, third = ((s, {"train/loss": 1 / s}) for s in (1, 2, 3))
    assert fake.told == [first, second, third, (3, {"epoch/epoch": 1}), (-1, {})]


def test_resuming_tells_nothing_twice_and_is_the_same_run(tmp_path: Path, fake: type[Fake]) -> None:
    write(tmp_path, range(1, 8))
    write(tmp_path, range(4, 10), resumed=3)
    assert steps_of(fake.told) == list(range(1, 10))
    assert steps_of(fake.told, "epoch/epoch") == [3, 6, 9]
    assert len({known.id for known in fake.opened}) == 1


def test_two_interruptions_at_falling_steps_tell_nothing_twice(tmp_path: Path, fake: type[Fake]) -> None:
    write(tmp_path, range(1, 10))
    write(tmp_path, range(4, 6), resumed=3)
    write(tmp_path, range(4, 12), resumed=3)
    assert steps_of(fake.told) == list(range(1, 12))


def test_an_epoch_whose_steps_are_known_is_still_told(tmp_path: Path, fake: type[Fake]) -> None:
    with MetricsLog(tmp_path, 0, Tracking(("fake",))) as metrics:
        metrics.write("train", 3, {"loss": 1.0})
    with MetricsLog(tmp_path, 3, Tracking(("fake",))) as metrics:
        metrics.write("epoch", 3, {"epoch": 1})
    assert steps_of(fake.told, "epoch/epoch") == [3]


def test_a_tracker_that_comes_later_is_told_what_was(tmp_path: Path, fake: type[Fake]) -> None:
    write(tmp_path, range(1, 6), kinds=())
    write(tmp_path, range(4, 8), resumed=3)
    assert steps_of(fake.told) == list(range(1, 8))


def test_a_tracker_that_fails_is_left_out_with_a_warning(
    tmp_path: Path, fake: type[Fake], caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails_at = 3
    with caplog.at_level(logging.WARNING):
        write(tmp_path, range(1, 7))
    assert steps_of(fake.told) == [1, 2]
    assert [r["step"] for r in read_metrics(tmp_path) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r.message for r in caplog.records] == [
        "fake is left out from here on: ConnectionError: the network is down. The run goes on."
    ]


def test_a_resumed_run_remembers_its_trackers_and_their_project(tmp_path: Path, fake: type[Fake]) -> None:
    assert remembered(tmp_path) is None
    write(tmp_path, range(1, 3))
    assert remembered(tmp_path) == Tracking(("fake",), "shop")


def test_a_tracker_that_cannot_begin_is_told_plainly(tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise ValueError("no key")

    monkeypatch.setitem(trackers._KINDS, "fake", refuse)
    with pytest.raises(UserError, match=r"fake cannot be told about this run \(ValueError: no key\).*--track fake"):
        write(tmp_path, range(1, 3))


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"No tracker is called 'wandbb' \(did you mean 'wandb'\?\)"):
        Tracking(("wandbb",)).require()
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'turborec\[trackio\]'"):
        Tracking(("trackio",)).require()


# --- the real ones, offline ---


def track(tmp_path: Path, kind: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `tracked.py` without a network: what it prints, and how it ends."""
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 7\n")
    settings = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    command = [sys.executable, PROGRAM, tmp_path / "run", kind, *arguments]
    return subprocess.run(command, env=os.environ | settings | nowhere, capture_output=True, text=True, timeout=120)


def needs(kind: str) -> None:
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed: pip install 'turborec[{kind}]'")


def wandb_records(path: Path) -> list[object]:
    """The records of a `.wandb` file: a LevelDB log of protocol buffers behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as protocol

    content, position, part, found = path.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block that no header fits into
            position += 32768 - position % 32768
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        part += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record = protocol.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


@pytest.mark.slow
def test_wandb_offline_keeps_everything_in_the_run_folder(tmp_path: Path) -> None:
    needs("wandb")
    assert track(tmp_path, "wandb", "0", "1", "7", "kill").returncode == 9
    done = track(tmp_path, "wandb", "6", "7", "9")
    assert done.returncode == 0 and done.stdout == ""
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one id, so that syncing makes them one run
    records = [record for file in files for record in wandb_records(file)]
    steps = [
        (record.history.step.num, json.loads(item.value_json))
        for record in records
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
        if (item.key or "/".join(item.nested_key)) == "train/loss"
    ]
    assert [step for step, _ in steps] == sorted({step for step, _ in steps})
    assert steps[-2:] == [(8, 1 / 8), (9, 1 / 9)]
    began = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (began.project, began.display_name) == ("shop", "run")
    assert {item.key: json.loads(item.value_json) for item in began.config.update}["seed"] == 7


@pytest.mark.slow
def test_trackio_is_told_every_step_once(tmp_path: Path) -> None:
    needs("trackio")
    assert track(tmp_path, "trackio", "0", "1", "7").returncode == 0
    done = track(tmp_path, "trackio", "6", "7", "9")
    assert done.returncode == 0 and done.stdout == ""
    with sqlite3.connect(tmp_path / "trackio" / "shop.db") as database:
        rows = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    database.close()
    assert len({(run, name) for run, name, *_ in rows}) == 1
    losses = [(step, json.loads(values)["train/loss"]) for *_, step, values in rows if b"train/loss" in values]
    assert losses == [(step, 1 / step) for step in range(1, 10)]
    assert [step for *_, step, values in rows if b"epoch/ndcg@10" in values] == [3, 6, 9]


@pytest.mark.slow
def test_wandb_without_a_login_says_what_to_do(tmp_path: Path) -> None:
    needs("wandb")
    program = (
        "import os, sys; os.environ.pop('WANDB_API_KEY', None); os.environ['WANDB_MODE'] = 'online'\n"
        "from pathlib import Path\nfrom turborec.engine.log import MetricsLog\nfrom turborec.engine.trackers import Tracking\n"
        "from turborec.errors import UserError\n"
        "try:\n    MetricsLog(Path(sys.argv[1]), 0, Tracking(('wandb',)))\nexcept UserError as error:\n    print(error)\n"
    )
    settings = {"HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=200)
    assert "wandb cannot be told about this run" in done.stdout and "WANDB_MODE=offline" in done.stdout
