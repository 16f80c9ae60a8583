"""Checkpoints of PyTorch are read without executing anything that they say."""

import argparse
import collections
import io
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turborec.bridges.archive import Name
from turborec.bridges.pickled import Foreign, read
from turborec.errors import UserError


class Mine:
    def __init__(self):
        self.width, self.table = 8, {"a": [1, 2]}


class Listed(list):
    pass


class Keyed(dict):
    pass


def saved(path, value, **how):
    torch.save(value, path, **how)
    return path


def archive(path, pickled, members=None, compression=zipfile.ZIP_STORED, root="archive"):
    """A checkpoint's archive around any bytes."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", pickled)
        file.writestr(f"{root}/byteorder", b"little")
        for name, content in (members or {}).items():
            file.writestr(f"{root}/{name}", content)
    return path


def reason(path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_as_they_are(tmp_path, protocol):
    value = {
        "none": None,
        "numbers": [True, 1, -(2**70), 1.5, float("inf")],
        "texts": ("", "ä\n", b"\x00\xff", b""),
        "sets": {1, "a", (2, 3)},
        "frozen": frozenset({1}),
        ("a", 1): collections.OrderedDict(b=1, a=2),
        "size": torch.Size([2, 3]),
    }
    got = read(saved(tmp_path / "c.pt", value, pickle_protocol=protocol))
    assert got == value and type(got[("a", 1)]) is collections.OrderedDict and list(got[("a", 1)]) == ["b", "a"]
    assert type(got["size"]) is tuple


@pytest.mark.parametrize(
    "dtype",
    [
        *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"),
        *("uint16", "uint32", "uint64", "float8_e4m3fn"),
    ],
)
def test_tensors_come_back_to_the_bit(tmp_path, dtype):
    tensor = (torch.arange(24).view(2, 3, 4) % 2).to(getattr(torch, dtype))
    got = read(saved(tmp_path / "c.pt", tensor))
    assert got.dtype == tensor.dtype and got.shape == tensor.shape
    assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))


def test_views_share_their_storage_as_they_did(tmp_path):
    base = torch.arange(20.0)
    value = {"a": base[3:9], "b": base.view(4, 5).T, "empty": torch.empty(0, 7), "scalar": torch.tensor(3.0)}
    got = read(saved(tmp_path / "c.pt", value))
    assert all(torch.equal(got[name], value[name]) for name in value)
    assert got["a"].untyped_storage().data_ptr() == got["b"].untyped_storage().data_ptr()


def test_a_module_and_its_optimizer(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    path = saved(tmp_path / "c.pt", {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    got, expected = read(path), torch.load(path, weights_only=True)
    assert list(got["state_dict"]) == list(expected["state_dict"])
    assert all(torch.equal(got["state_dict"][name], tensor) for name, tensor in expected["state_dict"].items())
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], expected["optimizer"]["state"][0]["exp_avg"])
    assert got["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert torch.equal(read(saved(path, torch.nn.Parameter(torch.ones(2)))), torch.ones(2))


def test_what_is_foreign_is_told_and_not_made(tmp_path):
    listed, keyed = Listed([1]), Keyed(a=2)
    value = {
        "mine": Mine(),
        "names": argparse.Namespace(lr=0.1),
        "listed": listed,
        "keyed": keyed,
        "scalar": np.float64(2.5),
        "dtype": torch.float32,
        "class": Mine,
        "array": np.arange(3),
    }
    got = read(saved(tmp_path / "c.pt", value))
    mine = f"{__name__}.Mine"
    assert got["mine"].name == mine and got["mine"].state == {"width": 8, "table": {"a": [1, 2]}}
    assert got["names"].name == "argparse.Namespace" and got["names"].state == {"lr": 0.1}
    assert got["listed"].items == [1] and got["keyed"].entries == {"a": 2}
    assert got["class"] == Name(mine) and got["dtype"] == Name("torch.float32")
    assert isinstance(got["scalar"], Foreign) and isinstance(got["array"], Foreign)


def test_cycles_are_read(tmp_path):
    loop = [1]
    loop.append(loop)
    got = read(saved(tmp_path / "c.pt", loop))
    assert got[0] == 1 and got[1] is got


class Bomb:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def touch(path):
    Path(path).write_text("ran")


def hostile(mark):
    """Pickles that make the file `mark` when an ordinary unpickler reads them."""
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "system": Bomb(os.system, (f"touch {mark}",)),
        "eval": Bomb(eval, (code,)),
        "exec": Bomb(exec, (code,)),
        "own": Bomb(touch, (str(mark),)),
        "getattr": (
            b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(X\x02\x00\x00\x00ostRX\x06\x00\x00\x00systemtR"
            + f"(Vtouch {mark}\ntR.".encode()
        ),
        "in a state": collections.OrderedDict(a=Bomb(touch, (str(mark),))),
        "as a key": {Bomb(touch, (str(mark),)): 1},
        "with a state": Bomb(collections.OrderedDict, (), {"__class__": Bomb(touch, (str(mark),))}),
        "by items": Bomb(collections.OrderedDict, (), None, None, iter([(1, Bomb(touch, (str(mark),)))])),
        "of torch": Bomb(torch.load, (str(mark),)),
    }


@pytest.mark.parametrize("kind", list(hostile("x")))
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_nothing_runs(tmp_path, kind, protocol):
    mark = tmp_path / "mark"
    bomb = hostile(mark)[kind]
    pickled = bomb if isinstance(bomb, bytes) else pickle.dumps(bomb, protocol)
    path = archive(tmp_path / "c.pt", pickled)
    try:
        read(path)
    except UserError as error:
        assert str(path) in str(error)
    assert not mark.exists()
    if kind in ("own", "system", "getattr", "eval", "in a state"):  # the bomb is a real one
        pickle.loads(pickled)
        assert mark.exists()


def test_a_state_changes_neither_tensor_nor_dictionary(tmp_path):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, tmp_path / "real.pt")
    with zipfile.ZipFile(tmp_path / "real.pt") as file:
        pickled = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
        data = next(file.read(name) for name in file.namelist() if name.endswith("data/0"))
    # … the tensor, then an empty dictionary as its state, and BUILD, before the dictionary gets it.
    changed = pickled.replace(b"Rq", b"R}X\x04\x00\x00\x00dataK\x01sbq", 2)
    stream.write(changed)
    got = read(archive(tmp_path / "c.pt", changed, {"data/0": data}))
    assert torch.equal(got["w"], torch.zeros(2)) and type(got["w"].data) is torch.Tensor


def tensor_pickle(kind=b"FloatStorage", key=b"0", count=4, offset=0, size=(2, 2), stride=(2, 1)):
    """What torch.save writes for a tensor, with any numbers."""

    def numbers(values):
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    text = lambda t: b"X" + struct.pack("<I", len(t)) + t  # noqa: E731
    number = lambda n: pickle.dumps(n, 2)[2:-1]  # noqa: E731
    identity = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + number(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02" + call + b"\x89ccollections\nOrderedDict\n)RtR."


def test_a_tensor_by_hand_is_read(tmp_path):
    data = torch.arange(4.0).numpy().tobytes()
    assert read(archive(tmp_path / "c.pt", tensor_pickle(), {"data/0": data})).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"count": 5}, "has 16 bytes, and not 5 times 4"),
        ({"count": 2**60}, "does not write"),
        ({"count": -1}, "does not write"),
        ({"key": b"../0"}, "does not write"),
        ({"key": b"1"}, "missing"),
        ({"kind": b"QInt8Storage"}, "not supported"),
        ({"offset": 1}, "beyond"),
        ({"offset": -1}, "no sense"),
        ({"size": (2, 3)}, "beyond"),
        ({"stride": (3, 1)}, "beyond"),
        ({"stride": (-1, 1)}, "no sense"),
        ({"stride": (1,)}, "no sense"),
        ({"size": (2**40, 2**40), "stride": (0, 0)}, "no sense"),
        ({"size": (2**20,), "stride": (0,)}, "beyond"),
        ({"size": (0, 2**47, 2**47), "stride": (0, 0, 0)}, "no sense"),
        ({"size": (1.5, 2)}, "no sense"),
        ({"size": (True, 2)}, "no sense"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, "no sense"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, numbers, told):
    path = archive(tmp_path / "c.pt", tensor_pickle(**numbers), {"data/0": bytes(16)})
    assert told in reason(path)


def test_truth_values_are_zero_or_one(tmp_path):
    path = archive(tmp_path / "c.pt", tensor_pickle(kind=b"BoolStorage"), {"data/0": b"\0\1\2\0"})
    assert "truth values" in reason(path)


TRICKS = {
    "get of unknown": (b"\x80\x02h\x05.", "never kept"),
    "long get of unknown": (b"\x80\x02j\xff\xff\xff\x7f.", "never kept"),
    "empty stack": (b"\x80\x02.", "one value"),
    "two values": (b"\x80\x02NN.", "one value"),
    "open mark": (b"\x80\x02(N.", "one value"),
    "mark missing": (b"\x80\x02t.", "damaged"),
    "list as a key": (b"\x80\x02}]Ns.", "key that is too large or a list"),
    "numbers that meet": (b"\x80\x02}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns.", "key that is too large or a int"),
    "dictionary in a set": (b"\x80\x04\x8f(}\x90.", "a dict"),
    "append to a number": (b"\x80\x02K\x01Na.", "fills a int"),
    "state of a number": (b"\x80\x02K\x01}b.", "gives a state"),
    "entries of a list": (b"\x80\x02]K\x01K\x02s.", "fills a list"),
    "key without value": (b"\x80\x02}(K\x01u.", "without a value"),
    "odd persistent id": (b"\x80\x02K\x01Q.", "outside"),
    "old persistent id": (b"Pabc\n.", "PERSID"),
    "short persistent id": (b"\x80\x02(X\x07\x00\x00\x00storagetQ.", "outside"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "buffer elsewhere": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "arguments that are no tuple": (b"\x80\x02cos\nsystem\n]R.", "no tuple"),
    "known call, other arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "not known"),
    "tensor of no storage": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.", "not made as"),
    "text that is not there": (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
    "bytes beyond any memory": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.", "damaged"),
    "no end": (b"\x80\x02N", "damaged"),
    "unknown opcode": (b"\x80\x02\xff.", "damaged"),
    "name of no text": (b"\x80\x04K\x01K\x02\x93.", "no text"),
    "digits": (b"L" + b"9" * 10_000 + b"L\n.", "damaged"),
    "pairs that are none": (b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02e\x85R.", "not known"),
    "endless call": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x000]q\x01(h\x00Nh\x01Ne0h\x00(h\x00Nh\x01NtR.",
        "damaged (RecursionError",
    ),
}


@pytest.mark.parametrize("trick", list(TRICKS))
def test_tricks_are_refused(tmp_path, trick):
    pickled, told = TRICKS[trick]
    assert told in reason(archive(tmp_path / "c.pt", pickled))


def test_keys_that_repeat_themselves_are_not_hashed(tmp_path):
    doubled = b"K\x01" + b"2\x86" * 64  # 2 ** 64 leaves in 65 tuples
    assert "too large" in reason(archive(tmp_path / "c.pt", b"\x80\x02}" + doubled + b"Ns."))
    deep = b"K\x01" + b"\x85" * 50_000
    assert "too large" in reason(archive(tmp_path / "d.pt", b"\x80\x02}" + deep + b"Ns."))
    assert read(archive(tmp_path / "e.pt", b"\x80\x02" + doubled + b"."))  # not as a key they are no harm


def test_copies_are_counted(tmp_path):
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000
    once = b"c_codecs\nencode\nq\x01" + text + b"q\x000(h\x01h\x00X\x06\x00\x00\x00latin1t0"
    again = b"0h\x01h\x00X\x06\x00\x00\x00latin1\x86R"
    assert "again and again" in reason(
        archive(tmp_path / "c.pt", b"\x80\x02N" + once.replace(b"(h\x01", b"(") + again * 1000 + b".")
    )


def test_archives_are_plain_and_whole(tmp_path):
    pickled = pickle.dumps(bytes(100_000), 4)
    assert "compressed" in reason(archive(tmp_path / "bomb.pt", pickled, compression=zipfile.ZIP_DEFLATED))
    assert "0 files" in reason(archive(tmp_path / "root.pt", pickled, root="a/b"))
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("b/data.pkl", pickled)
    assert "2 files" in reason(tmp_path / "two.pt")
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", b"big")
    assert "big-endian" in reason(tmp_path / "big.pt")
    whole = archive(tmp_path / "whole.pt", pickled).read_bytes()
    claimed = whole.replace(struct.pack("<II", len(pickled), len(pickled)), struct.pack("<II", 2**31, 2**31))
    (tmp_path / "claimed.pt").write_bytes(claimed)
    assert "more than the file" in reason(tmp_path / "claimed.pt")
    flipped = bytearray(whole)
    flipped[500] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    assert "damaged" in reason(tmp_path / "flipped.pt")


def test_what_is_no_archive_is_told(tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps({"a": 1}, 4))
    assert "bare pickle" in reason(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "bare pickle" in reason(path)
    path.write_bytes(b"")
    assert "no zip archive" in reason(path)
    assert "No such file" in reason(tmp_path / "absent.pt")
    assert "directory" in reason(tmp_path)
    whole = saved(path, {"a": torch.ones(100)}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "beginning" in reason(path)


def real():
    stream = io.BytesIO()
    value = {"w": torch.arange(6.0).view(2, 3), "x": [Mine(), {1, 2}, np.float32(1)], "o": collections.OrderedDict(a=b"1")}
    torch.save(value, stream)
    return stream.getvalue()


REAL = real()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_file_ends_in_a_user_error_or_in_values(tmp_path, changes):
    content = bytearray(REAL)
    for place, value in changes:
        content[place] = value
    attempt(tmp_path, bytes(content))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_pickle_ends_in_a_user_error_or_in_values(tmp_path, data):
    """Behind an archive that is right, so that its checksums do not find the damage first."""
    with zipfile.ZipFile(io.BytesIO(REAL)) as file:
        members = {name.split("/", 1)[1]: file.read(name) for name in file.namelist()}
    pickled = bytearray(members.pop("data.pkl"))
    for _ in range(data.draw(st.integers(1, 6))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    storages = {name: content for name, content in members.items() if name.startswith("data/")}
    attempt(tmp_path, archive(tmp_path / "m.pt", bytes(pickled), storages).read_bytes())


def attempt(folder, content):
    path = folder / "fuzzed.pt"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that come twice
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)
