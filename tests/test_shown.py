"""Impressions and publication dates in evaluations, against the raw files of a generated twin of MIND."""

import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from results import run_of
from scored import Table
from stores import store_of
from test_impressions import official
from turborec.compare import Terms, compare
from turborec.data.loader import Batches, evaluation_batches
from turborec.data.prepare import Prepare, prepare
from turborec.data.split import GlobalTime, LeaveOneOut
from turborec.data.store import open_store
from turborec.errors import UserError
from turborec.evaluate import Evaluation, evaluate, targets_of
from turborec.evaluate import _of_impressions as of_impressions
from turborec.metrics import HR, MRR, CatalogueAUC, Coverage, ImpressionAUC, ImpressionMRR, ImpressionNDCG
from turborec.ranking import Shown, Tally
from turborec.sources.mind import Config

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
twin = import_module("mind_twin")

OF_IMPRESSIONS = (ImpressionAUC(), ImpressionMRR(), ImpressionNDCG(k=5), ImpressionNDCG(k=10))
DAYS = GlobalTime(validation_from="2019-11-14", test_from="2019-11-15")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mind")
    twin.write(folder, twin.Settings(seed=5, users=60, news=300, impressions=400))
    return folder


@pytest.fixture(scope="module", params=[DAYS, LeaveOneOut()], ids=["days", "leave_one_out"])
def store(raw, request, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return open_store(prepare(Config().parse(raw), {"kind": "mind"}, Prepare(min_item_events=0), request.param, home))


def lines(raw):
    """User, time, what was shown with its clicks, and the history, of each line."""
    for part in ("train", "dev"):
        for line in (raw / f"MINDsmall_{part}" / "behaviors.tsv").read_text().splitlines():
            _, user, time, history, shown = line.split("\t")
            moment = datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC)
            yield user, moment, [entry.rsplit("-", 1) for entry in shown.split()], history.split()


def measured(store, part, config, seed=0):
    scores = torch.randn(store.num_users, store.num_items + 1, generator=torch.Generator().manual_seed(seed))
    batches = evaluation_batches(store, part, Batches(max_length=8, tokens=64), config.users(store, part))
    return scores, evaluate(Table(scores), batches, store, part, config, torch.device("cpu"), max_length=8)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("memory", [0, 256])
def test_each_impression_of_a_part_is_ranked_among_what_it_shows(raw, store, part, memory):
    config = Evaluation(metrics=(*OF_IMPRESSIONS, HR(k=10)), memory_mb=memory)
    scores, result = measured(store, part, config)
    users = {name: row for row, name in enumerate(store.user_ids.raw(range(store.num_users)))}
    items = {name: row + 1 for row, name in enumerate(store.item_ids.raw(range(store.num_items)))}
    times = store.histories.times
    expected = []
    for user, moment, shown, _ in lines(raw):
        row, time = users.get(user, -1), int(moment.timestamp() * 1000)
        if row not in result.targets.users:
            continue
        begin, end = (int(edge[0]) for edge in store.span(part, np.array([row])))
        if not times[begin - 1] < time <= times[end - 1]:
            continue
        order = sorted(shown, key=lambda entry: -scores[row, items[entry[0]]])
        expected.append(official([int(click) for _, click in order]))
    assert len(expected) > 20 and result.card["shown"]["impressions"] == len(expected)
    mean = np.nanmean(expected, axis=0)
    names = [metric.name for metric in OF_IMPRESSIONS]
    assert [result.values[name] for name in names] == pytest.approx(mean.tolist(), abs=1e-12)
    assert result.kept["impression_auc"] == result.masked["impression_auc"] and 0 <= result.values["hr@10"] <= 1


def test_all_of_a_day_is_measured_but_for_users_without_a_history(raw, tmp_path):
    store = open_store(prepare(Config().parse(raw), {"kind": "mind"}, Prepare(min_item_events=0), DAYS, tmp_path))
    _, result = measured(store, "test", Evaluation(metrics=OF_IMPRESSIONS))
    assert store.card["source"]["terms"].startswith("Generated, not MIND: benchmarks/mind_twin.py drew this from seed 5")
    before = {user for user, moment, _, history in lines(raw) if history or moment.day < 15}
    assert result.card["shown"]["impressions"] == sum(moment.day == 15 and user in before for user, moment, *_ in lines(raw))
    result.write(tmp_path / "result", store)
    table = pq.read_table(tmp_path / "result" / "per_impression.parquet").to_pydict()
    assert np.nanmean(table["impression_auc"]) == pytest.approx(result.values["impression_auc"])
    assert set(table["user"]) <= before and min(table["shown"]) >= 2


@pytest.mark.parametrize("memory", [0, 256])
def test_what_nobody_had_seen_yet_is_no_candidate(raw, store, memory):
    config = Evaluation(candidates="published", memory_mb=memory, metrics=(MRR(), CatalogueAUC(), Coverage(k=5)))
    scores, result = measured(store, "test", config)
    first, names = {}, store.item_ids.raw(range(store.num_items))
    for _, moment, shown, history in lines(raw):
        for name in history:
            first[name] = -np.inf
        for name, _ in shown:
            first[name] = min(first.get(name, np.inf), moment.timestamp() * 1000)
    for history in ("kept", "masked"):
        found, sizes = [], []
        for row in result.targets.users:
            begin, cut, end = store.histories.offsets[row], store.cuts[row, 1], store.histories.offsets[row + 1]
            targets, moment = set(store.histories.items[cut:end].tolist()), store.histories.times[cut]
            ranked = {i for i, name in enumerate(names, 1) if first.get(name, np.inf) <= max(moment, -1e18)} | targets
            sizes.append(len(ranked))
            ranked -= (set(store.histories.items[begin:cut].tolist()) - targets) if history == "masked" else set()
            best = max(float(scores[row, i]) for i in targets)
            found.append(1 / (1 + sum(float(scores[row, i]) > best for i in ranked)))
        assert getattr(result, history)["mrr"] == pytest.approx(np.mean(found))
        if history == "kept":
            assert result.ranks["kept"].candidates.tolist() == sizes and min(sizes) < store.num_items
    assert "had seen by the time" in result.card["candidates"]


def test_impressions_are_compared_by_users_with_all_they_were_shown(store, tmp_path, monkeypatch):
    monkeypatch.setattr("turborec.compare.FEWEST_USERS", 5)
    metrics = (*OF_IMPRESSIONS, MRR())
    runs = [str(run_of(tmp_path / n, store, skill, seed, metrics=metrics)) for n, skill, seed in (("a", 0, 1), ("b", 2, 2))]
    found = compare(runs, Terms(metrics=("impression_auc", "mrr"), resamples=300, seed=3))
    tables = [pq.read_table(Path(run) / "evaluation/test/sasrec/per_impression.parquet").to_pydict() for run in runs]
    auc = [np.asarray(table["impression_auc"]) for table in tables]
    one = found.differences[0]
    assert (one.baseline, one.value) == pytest.approx([np.nanmean(values) for values in auc])
    assert one.difference == pytest.approx(np.nanmean(auc[1] - auc[0]))
    users = found.baseline.users
    of_user = [(auc[1] - auc[0])[np.asarray(tables[0]["user"]) == user] for user in users]
    drawn = np.random.default_rng(3).integers(0, len(users), (300, len(users)))
    means = [np.nanmean(np.concatenate([of_user[user] for user in sample])) for sample in drawn]
    assert (one.low, one.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert "with all that they were shown" in " ".join(found.remarks)

    slices = compare(runs, Terms(metrics=("impression_auc",), resamples=50)).slices
    shown = {user for user, values in zip(users, of_user, strict=True) if np.isfinite(values).any()}
    assert slices and sum(s.users for s in slices if s.topic.startswith("events")) <= len(shown)

    with pytest.raises(UserError, match=r"impression_auc .* the users has the mean"):  # the file of another run
        shutil.copy(*(Path(run) / "evaluation/test/sasrec/per_impression.parquet" for run in runs))
        compare(runs, Terms())


def test_values_of_impressions_that_are_missing_are_told(store, tmp_path):
    runs = [run_of(tmp_path / name, store, seed=seed, metrics=(ImpressionAUC(), MRR())) for name, seed in (("a", 1), ("b", 2))]
    place = runs[1] / "evaluation/test/sasrec/per_impression.parquet"
    table = pq.read_table(place)
    nowhere = pa.array(np.full(len(table), np.nan))
    pq.write_table(table.set_column(table.column_names.index("impression_auc"), "impression_auc", nowhere), place)
    with pytest.raises(UserError, match=r"b.*per_impression.parquet has no value of impression_auc.* evaluate the run again"):
        compare([str(run) for run in runs], Terms())
    pq.write_table(table.drop_columns("impression_auc"), place)
    with pytest.raises(UserError, match=r"b.*per_impression.parquet cannot be read .*impression_auc.* evaluate the run again"):
        compare([str(run) for run in runs], Terms())
    place.unlink()
    with pytest.raises(UserError, match=r"b.*per_impression.parquet cannot be read .*FileNotFound.* evaluate the run again"):
        compare([str(run) for run in runs], Terms())


def test_impressions_in_which_everything_was_clicked_are_told(raw, store):
    shown = Shown.of(store, "test", store.users_of("test"))
    config = Evaluation(metrics=(ImpressionAUC(),))
    tally = Tally.empty(targets_of(store, "test", config), 0, store.num_items, shown)
    with pytest.raises(UserError, match="impression_auc: whoever takes part clicked everything"):
        of_impressions(tally, replace(shown, clicked=np.ones_like(shown.clicked)), config)


def test_nobody_was_shown_anything(store):
    found = Shown.of(store, "test", np.zeros(0, dtype=np.int64))
    assert len(found.numbers) == len(found.items) == 0 and found.offsets.tolist() == [0]


def test_data_without_impressions_are_told(tmp_path):
    store = store_of(tmp_path / "store", [[1, 2, 3]], items=3)
    with pytest.raises(UserError, match="do not say what was shown"):
        measured(store, "test", Evaluation(metrics=OF_IMPRESSIONS))
