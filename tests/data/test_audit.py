import numpy as np
import pytest

from stores import store_of
from turborec.data import audit, store
from turborec.data.schema import UNKNOWN_TIME

NOW = 1000.0
HISTORIES = [[1, 2, 3, 1], [2, 2, 4, 5], [3, 1]]
TIMES = [[10, 10, 30, 20], [UNKNOWN_TIME, 5, UNKNOWN_TIME, 2000], [7, 40]]


@pytest.fixture(params=[1, 2, 3, 100])
def small(request, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "BLOCK", request.param)
    monkeypatch.setattr(store, "BLOCK", request.param)
    return store_of(tmp_path / "store", HISTORIES, times=TIMES)


def test_times_are_counted_whatever_the_blocks_are(small):
    assert audit.times(small, NOW) == audit.Times(events=10, unknown=2, tied=1, backwards=1, future=1, first=5, last=2000)


def test_what_the_parts_have_of_one_another(small):
    found = audit.split(small)
    assert found.users == {"train": 3, "validation": 2, "test": 2}
    assert found.begins == {"train": 5, "validation": 30, "test": 20}
    assert found.ends == {"train": 40, "validation": 30, "test": 2000}
    assert found.cold_targets == 0.5  # item 5, but not item 1
    # The known test times are 20 and 2000; none of 10, 10, 5, 7 and 40 is later than their middle.
    assert found.hindsight == 0.0


def test_hindsight_is_the_share_of_training_after_half_of_the_test(tmp_path):
    made = store_of(tmp_path / "store", [[1, 2, 3], [1, 2, 3, 4]], times=[[1, 2, 3], [10, 20, 30, 40]])
    assert audit.split(made).hindsight == 0.0  # training has 1, 10, 20; the middle of 3 and 40 is 21.5
    made = store_of(tmp_path / "other", [[1, 2, 3], [1, 2, 3, 4]], times=[[1, 2, 3], [10, 50, 60, 70]])
    assert audit.split(made).hindsight == pytest.approx(1 / 3)  # 50 of 1, 10 and 50 is later than 36.5


def test_nothing_is_wrong_with_what_is_sound(small):
    assert audit.faults(small) == []


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("items", lambda a: np.where(a == 5, 9, a), "items run from 1 to 9, not from 1 to 5"),
        ("cuts", lambda a: a[:, ::-1].copy(), "a cut between the parts lies outside"),
        ("offsets", lambda a: a[[0, 2, 1, 3]], "the histories do not cover the events"),
    ],
)
def test_arrays_that_contradict_one_another_are_told(name, change, fault, tmp_path):
    sound = store_of(tmp_path / "store", HISTORIES)
    path = tmp_path / "store" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    assert any(fault in one for one in audit.faults(store.open_store(sound.folder, verify=False)))
