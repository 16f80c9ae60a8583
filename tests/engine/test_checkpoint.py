"""Checkpoints survive kills, full disks, flipped bits and second writers, and come back exactly as they were."""

import errno
import itertools
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkpoint_writer
import pytest
import safetensors
import torch
from disks import small_disk
from torch import Tensor

from turborec.engine import checkpoint
from turborec.engine.checkpoint import DamagedCheckpointError, load, load_latest, save, sweep
from turborec.errors import UserError

GROUPS = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "optimizer": {"step": torch.tensor(7)}}
STATE = {"epoch": 3, "best": 0.1 + 0.2, "names": ["a", None]}
FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step, GROUPS, STATE)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def round_trip(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return load(save(folder, 1, {"group": tensors}, {})).tensors["group"]


# --- what is saved comes back ---


def test_a_checkpoint_is_a_folder_of_safetensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, 123, GROUPS, STATE)
    assert path == tmp_path / "step_000123"
    assert names(tmp_path) == ["step_000123"]
    assert names(path) == sorted(FILES)


def test_tensors_state_and_step_come_back(tmp_path: Path) -> None:
    found = load(save(tmp_path, 123, GROUPS, STATE))
    assert (found.step, found.state) == (123, STATE)
    assert torch.equal(found.tensors["model"]["weight"], torch.arange(6.0).view(2, 3))
    assert torch.equal(found.tensors["optimizer"]["step"], torch.tensor(7))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.tensor([2**62, -(2**63)]),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0)[3:5],
        torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True),
        torch.get_rng_state(),
    ],
    ids=["scalar", "nan", "bf16", "int64", "bool", "empty", "transposed", "slice", "gradient", "random-state"],
)
def test_every_kind_of_tensor_keeps_its_shape_type_and_bits(tmp_path: Path, tensor: Tensor) -> None:
    found = round_trip(tmp_path, {"x": tensor})["x"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.contiguous().view(-1).view(torch.uint8).equal(tensor.detach().contiguous().view(-1).view(torch.uint8))


def test_tensors_that_share_memory_come_back_each_with_its_own_values(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    found = round_trip(tmp_path, {"table": table, "tied": table, "row": table[1]})
    assert torch.equal(found["table"], table)
    assert torch.equal(found["tied"], table)
    assert torch.equal(found["row"], torch.tensor([3.0, 4.0, 5.0]))


def test_a_loaded_tensor_may_be_changed_without_changing_the_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1, GROUPS, STATE)
    load(path).tensors["model"]["weight"].zero_()
    assert torch.equal(load(path).tensors["model"]["weight"], torch.arange(6.0).view(2, 3))


def test_an_empty_group_comes_back_empty(tmp_path: Path) -> None:
    assert round_trip(tmp_path, {}) == {}


def test_saving_a_step_again_replaces_it(two: Path) -> None:
    save(two, 2, {"model": {}}, {"epoch": 4})
    assert load(two / "step_000002").state == {"epoch": 4}
    assert names(two) == ["step_000001", "step_000002"]


# --- damage is found, named, and survived ---


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_wherever_it_is(two: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    file = two / "step_000002" / name
    good = file.read_bytes()
    for bit in random.Random(name).sample(range(8 * len(good)), 25):
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=name):
            load(file.parent)
        with pytest.raises(DamagedCheckpointError):
            load_latest(two, strict=True)
        caplog.clear()
        found = load_latest(two)
        assert found is not None
        assert found.step == 1
        assert name in caplog.text


def test_the_message_names_the_file_and_both_hashes(two: Path) -> None:
    file = two / "step_000002" / "state.json"
    facts = json.loads((file.parent / "manifest.json").read_text())["files"]["state.json"]
    file.write_bytes(file.read_bytes().replace(b"3", b"4", 1))
    got = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout[:64]
    with pytest.raises(DamagedCheckpointError) as caught:
        load(file.parent)
    assert str(caught.value) == (
        f"The checkpoint {file.parent} is damaged: state.json has SHA-256 {got}, not {facts['sha256']}."
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", ["nothing", "one byte", "half", "all but one byte"])
def test_a_truncated_file_is_found(two: Path, name: str, left: str) -> None:
    file = two / "step_000002" / name
    size = file.stat().st_size
    os.truncate(file, {"nothing": 0, "one byte": 1, "half": size // 2, "all but one byte": size - 1}[left])
    with pytest.raises(DamagedCheckpointError, match=name):
        load(file.parent)
    assert load_latest(two).step == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [n for n in FILES if n != "manifest.json"])
def test_a_missing_file_is_found(two: Path, name: str) -> None:
    (two / "step_000002" / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{name}: No such file"):
        load(two / "step_000002")
    assert load_latest(two).step == 1  # type: ignore[union-attr]


def test_a_folder_without_a_manifest_is_left_out_with_a_warning(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    (two / "step_000002" / "manifest.json").unlink()
    assert checkpoint.checkpoints(two) == [two / "step_000001"]
    assert "step_000002 is left out" in caplog.text
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is missing"):
        load(two / "step_000002")


def test_a_checkpoint_renamed_to_another_step_is_refused(two: Path) -> None:
    (two / "step_000002").rename(two / "step_000009")
    with pytest.raises(DamagedCheckpointError, match="has step 2, not 9"):
        load(two / "step_000009")


def test_when_all_are_damaged_nothing_is_loaded(two: Path) -> None:
    for path in checkpoint.checkpoints(two):
        (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"^Every checkpoint in .* is damaged\."):
        load_latest(two)


def test_a_newer_format_is_refused_rather_than_passed_over(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    path = save(two, 3, GROUPS, STATE)
    monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        load_latest(two)
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert str(caught.value) == (
        f"{path} has checkpoint format 2, this version reads 1: open it with the version of turborec that wrote it."
    )


def test_a_pickle_in_the_place_of_weights_is_never_executed(two: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = two / "step_000002"
    torch.save({"weight": Evil()}, path / "model.safetensors")
    content = json.loads(checkpoint._describe(path, 2))
    content["files"].pop("manifest.json")
    content.pop("sha256")
    (path / "manifest.json").write_text(json.dumps({**content, "sha256": checkpoint._seal(content)}))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        load(path)
    assert not (tmp_path / "executed").exists()


# --- which is the latest ---


def test_checkpoints_are_ordered_by_step_beyond_six_digits(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 2):
        save(tmp_path, step, {}, {})
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [2, 999_999, 1_000_000]
    assert checkpoint.latest(tmp_path) == tmp_path / "step_1000000"


def test_a_folder_that_is_empty_or_not_there_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    assert load_latest(tmp_path) is None


# --- kills ---


@contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Any]:
    """A process of its own, killed at the end; the server that forks it imports torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["turborec.engine.checkpoint"])
    child = context.Process(target=target, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def kill_while_saving(folder: Path, kills: int) -> None:
    context = multiprocessing.get_context("forkserver")
    # Without a lock: a writer killed while it held one would leave it held for ever.
    committed, delays = context.Value("q", 0, lock=False), random.Random(0)
    for _ in range(kills):
        before = committed.value
        with process(checkpoint_writer.save_for_ever, folder, committed) as child:
            while committed.value <= before:
                assert child.is_alive(), "the writer found no good checkpoint to go on from"
                time.sleep(0.001)
            time.sleep(delays.uniform(0, 0.08))
        assert load_latest(folder, strict=True) is not None
        sweep(folder)
        found = load_latest(folder, strict=True)
        assert found is not None
        assert found.step >= committed.value
        assert found.state == {"step": found.step}
        assert found.tensors["model"]["weight"].eq(found.step).all()
        assert all(checkpoint._COMMITTED.fullmatch(name) for name in names(folder))


def test_the_newest_committed_checkpoint_survives_20_kills_while_saving(tmp_path: Path) -> None:
    kill_while_saving(tmp_path, 20)


@pytest.mark.slow
def test_the_newest_committed_checkpoint_survives_50_kills_while_saving(tmp_path: Path) -> None:
    kill_while_saving(tmp_path, 50)


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_sweep_removes_what_dead_writers_left_and_nothing_else(two: Path, dead_pid: int) -> None:
    live, dead, own = (f"step_000003.tmp.{pid}" for pid in (os.getppid(), dead_pid, os.getpid()))
    for name in (live, dead, own):
        (two / name).mkdir()
    sweep(two)
    assert names(two) == ["step_000001", "step_000002", live]
    assert checkpoint.checkpoints(two) == [two / "step_000001", two / "step_000002"]


def test_sweep_puts_back_a_checkpoint_whose_replacement_never_arrived(two: Path, dead_pid: int) -> None:
    (two / "step_000002").rename(two / f"step_000002.old.{dead_pid}")
    shutil.copytree(two / "step_000001", two / f"step_000001.old.{dead_pid}")
    sweep(two)
    assert names(two) == ["step_000001", "step_000002"]
    assert load(two / "step_000002").step == 2


# --- disks that fail ---


def test_files_and_folder_reach_the_disk_before_the_rename_and_the_rename_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Path | str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(Path(f"/proc/self/fd/{fd}").readlink()))
    rename = os.replace

    def replace(old: Path, new: Path) -> None:
        order.append("renamed")
        rename(old, new)

    monkeypatch.setattr(os, "replace", replace)
    save(tmp_path, 1, GROUPS, STATE)
    temporary = tmp_path / f"step_000001.tmp.{os.getpid()}"
    assert set(order[:-2]) == {temporary, *(temporary / name for name in FILES)}
    assert order[-2:] == ["renamed", tmp_path]


def assert_old_is_intact_and_nothing_is_partial(folder: Path) -> None:
    assert load(folder / "step_000001").state == STATE
    assert all(load(folder / name) for name in names(folder))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", [1, 2], ids=["replacing", "new"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_call_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, step: int, number: int
) -> None:
    save(tmp_path, 1, GROUPS, STATE)
    original, calls, failing = getattr(os, call), itertools.count(1), 0

    def flaky(*arguments: Any) -> Any:
        if next(calls) == failing:
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(os, call, flaky)
    save(tmp_path, step, GROUPS, STATE)
    total = next(calls) - 1
    assert total >= 1
    for k in range(1, total + 1):
        shutil.rmtree(tmp_path / "step_000002", ignore_errors=True)
        calls, failing = itertools.count(1), k
        with pytest.raises(UserError, match=f"{os.strerror(number)}: step {step} was not saved"):
            save(tmp_path, step, GROUPS, STATE)
        assert_old_is_intact_and_nothing_is_partial(tmp_path)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 50, 100, 300, 4000])
def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, size: int) -> None:
    save(tmp_path, 1, GROUPS, STATE)
    with file_size_limit(size), pytest.raises(UserError, match="step 2 was not saved"):
        save(tmp_path, 2, {"model": {"weight": torch.zeros(1000)}}, STATE)
    assert names(tmp_path) == ["step_000001"]
    assert_old_is_intact_and_nothing_is_partial(tmp_path)


def test_the_space_is_looked_at_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, GROUPS, STATE)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**19))
    with pytest.raises(UserError) as caught:
        save(tmp_path, 2, {"model": {"weight": torch.zeros(2**18)}}, {})
    assert str(caught.value) == (
        "No space left on device (2.0 MiB are needed, 0.5 MiB are free): "
        f"step 2 was not saved in {tmp_path}. The checkpoint step_000001 is intact."
    )


def test_an_error_of_safetensors_about_the_disk_is_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"^No space left on device: step 1 .* No earlier checkpoint is there\.$"):
        save(tmp_path, 1, GROUPS, STATE)
    assert names(tmp_path) == []


@pytest.mark.parametrize("preflight", [True, False])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preflight: bool) -> None:
    if not preflight:
        monkeypatch.setattr(checkpoint, "_check_space", lambda *_: None)
    with small_disk(tmp_path, kilobytes=4096) as disk:
        save(disk, 1, GROUPS, STATE)
        for size in (2**18, 2**20, 2**21):
            (disk / "filler").write_bytes(bytes(2**22 - 2**18))
            with pytest.raises(UserError, match=r"^No space left on device.*step_000001 is intact\."):
                save(disk, 2, {"model": {"weight": torch.zeros(size)}}, STATE)
            (disk / "filler").unlink()
            assert names(disk) == ["step_000001"]
            assert load(disk / "step_000001").state == STATE


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    assert load(save(tmp_path, 1, GROUPS, STATE)).step == 1


def test_a_place_that_cannot_be_written_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^Not a directory: step 1 was not saved in .*/file/run\."):
        save(tmp_path / "file" / "run", 1, GROUPS, STATE)


# --- keeping a few ---


def test_the_newest_and_the_protected_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, {}, {})
    checkpoint.keep(tmp_path, last=2, protect={1, 3})
    assert names(tmp_path) == ["step_000001", "step_000003", "step_000005", "step_000006"]


def test_keeping_more_than_there_are_deletes_nothing(two: Path) -> None:
    checkpoint.keep(two, last=5)
    assert names(two) == ["step_000001", "step_000002"]


def test_a_delete_that_fails_is_a_warning(two: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        checkpoint.keep(two, last=1)
    assert "step_000001 was not deleted: Device or resource busy." in caplog.text
    assert checkpoint.checkpoints(two) == [two / "step_000002"]
    sweep(two)
    assert names(two) == ["step_000002"]


# --- quiet ---


def test_nothing_is_logged_when_all_is_well(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sweep(two)
    checkpoint.keep(two, last=1)
    load_latest(two)
    assert caplog.text == ""
