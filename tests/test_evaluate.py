import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import turborec
from scored import Table
from stores import item_id, store_of, user_id
from turborec.data.loader import Batches, evaluation_batches
from turborec.data.store import Store
from turborec.errors import UserError
from turborec.evaluate import Evaluation, Result, count, evaluate, protocol, summarise
from turborec.metrics import ARP, HR, MRR, NDCG, TIES, CatalogueAUC, Coverage, Recall
from turborec.ranking import Targets
from turborec.recipe import validate

CPU = torch.device("cpu")
USERS, ITEMS = 40, 25
MASKS = ("history", "training")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Users with one to four targets, some of them repeated."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 12, USERS)
    histories = [generator.integers(1, ITEMS + 1, n).tolist() for n in lengths]
    cuts = [(n - 1 - t, n - t) for n, t in zip(lengths.tolist(), generator.integers(1, 4, USERS).tolist(), strict=True)]
    return store_of(tmp_path / "store", histories, items=ITEMS, cuts=cuts)


def ties(users: int = USERS) -> Table:
    return Table(torch.randint(0, 5, (users, ITEMS + 1), generator=torch.Generator().manual_seed(1)).float())


def measure(store: Store, scorer: object, config: Evaluation, tokens: int = 64) -> Result:
    batches = evaluation_batches(store, "test", Batches(max_length=8, tokens=tokens), config.users(store, "test"))
    return evaluate(scorer, batches, store, "test", config, CPU, max_length=8)


def test_reported_values_are_the_means_of_the_users_values(store):
    result = measure(store, ties(), Evaluation())
    for history, means in (("masked", result.masked), ("kept", result.kept)):
        assert {n: v.mean() for n, v in result.per_user[history].items()} | means == means
        assert set(means) - set(result.per_user[history]) == {"coverage@10", "arp@10"}


def test_values_are_those_of_a_sort_of_the_candidates(store):
    """Scores without ties, so that a plain sort gives the ranks."""
    scores = torch.rand(USERS, ITEMS + 1, generator=torch.Generator().manual_seed(2))
    result = measure(store, Table(scores), Evaluation(metrics=(HR(k=3), Recall(k=3), MRR(), Coverage(k=2), ARP(k=2))))
    events = np.bincount(store.training().items, minlength=ITEMS + 1)
    for history, means in (("masked", result.masked), ("kept", result.kept)):
        found, listed = {"hr@3": [], "recall@3": [], "mrr": []}, []
        for user in range(USERS):
            begin, end = store.cuts[user, 1], store.histories.offsets[user + 1]
            targets = set(store.histories.items[begin:end].tolist())
            seen = set(store.histories.items[store.histories.offsets[user] : begin].tolist())
            candidates = set(range(1, ITEMS + 1)) - (seen - targets if history == "masked" else set())
            order = sorted(candidates, key=lambda i: -scores[user, i])
            found["hr@3"].append(bool(targets.intersection(order[:3])))
            found["recall@3"].append(len(targets.intersection(order[:3])) / len(targets))
            found["mrr"].append(1 / (1 + min(order.index(t) for t in targets)))
            listed += order[:2]
        expected = {name: np.mean(values) for name, values in found.items()}
        expected |= {"coverage@2": len(set(listed)) / ITEMS, "arp@2": events[listed].mean()}
        assert means == pytest.approx(expected)


def test_masks_may_be_the_events_of_training_alone(store):
    """MMRec's protocol: items of the validation part are candidates at the test, and cost places."""
    scores = torch.rand(USERS, ITEMS + 1, generator=torch.Generator().manual_seed(2))
    whole, training = (measure(store, Table(scores), Evaluation(masks=masks, metrics=(Recall(k=3), MRR()))) for masks in MASKS)
    found = []
    for user in range(USERS):
        begin, first, second, end = (store.histories.offsets[user], *store.cuts[user], store.histories.offsets[user + 1])
        targets = set(store.histories.items[second:end].tolist())
        seen = set(store.histories.items[begin:first].tolist()) - targets
        order = sorted(set(range(1, ITEMS + 1)) - seen, key=lambda i: -scores[user, i])
        found.append(len(targets.intersection(order[:3])) / len(targets))
    assert training.masked["recall@3"] == pytest.approx(np.mean(found)) and training.masked["mrr"] < whole.masked["mrr"]
    assert training.kept == whole.kept
    assert training.card["masks"] == "the events of the training part alone" and "masks" not in whole.card


@pytest.mark.parametrize("memory", [0, 256])
def test_candidates_may_be_the_items_that_training_never_sees(tmp_path, memory):
    """A split by items: 1..10 are of training, 11..17 of validation, 18..25 of the test; some users have none of the last."""
    generator = np.random.default_rng(3)
    counts = np.stack([np.full(USERS, 5), generator.integers(0, 3, USERS), generator.integers(0, 4, USERS)], axis=1)
    ranges = ((1, 11), (11, 18), (18, ITEMS + 1))
    parts = [[generator.integers(*r, n).tolist() for r, n in zip(ranges, row, strict=True)] for row in counts.tolist()]
    cuts = [(5, 5 + row[1]) for row in counts.tolist()]
    store = store_of(tmp_path / "store", [[*a, *b, *c] for a, b, c in parts], items=ITEMS, cuts=cuts)
    unseen = set(range(1, ITEMS + 1)) - {item for row in parts for item in row[0]}
    scores = torch.rand(USERS, ITEMS + 1, generator=torch.Generator().manual_seed(2))
    config = Evaluation(candidates="unseen", memory_mb=memory, metrics=(Recall(k=3), MRR(), CatalogueAUC(), Coverage(k=2)))
    result = measure(store, Table(scores), config)
    who = [user for user in range(USERS) if parts[user][2]]
    assert result.targets.users.tolist() == who
    for history in ("masked", "kept"):
        found = []
        for user in who:
            targets = set(parts[user][2])
            candidates = unseen - (set(parts[user][1]) - targets if history == "masked" else set())
            best = max(scores[user, i] for i in targets)
            above = [scores[user, i] for i in candidates]
            found.append(1 / (1 + sum(score > best for score in above)))
        assert getattr(result, history)["mrr"] == pytest.approx(np.mean(found))
        assert getattr(result, history)["coverage@2"] <= len(unseen) / ITEMS
    assert result.ranks["kept"].candidates.tolist() == [len(unseen)] * len(who)
    assert result.card["candidates"] == "the items that training has no event of"
    assert measure(store, Table(torch.zeros(USERS, ITEMS + 1)), config).kept["catalogue_auc"] == pytest.approx(0.5)


def test_candidates_that_training_never_sees_are_none_of_a_split_that_leaves_none(store):
    with pytest.raises(UserError, match="no event in test is of an item that training has not"):
        measure(store, ties(), Evaluation(candidates="unseen"))


@pytest.mark.parametrize("items", [9, 10])
def test_a_constant_scorer_puts_every_target_in_the_middle(tmp_path, items):
    store = store_of(tmp_path, [[1, 2, 3]] * 4, items=items)
    result = measure(store, Table(torch.ones(4, items + 1)), Evaluation(metrics=(MRR(), HR(k=5), CatalogueAUC())))
    middle = (items + 1) / 2
    assert result.ranks["kept"].values.tolist() == [middle] * 4
    assert result.ranks["masked"].values.tolist() == [middle - 1] * 4  # two seen items are no candidates
    assert result.kept == {"mrr": 1 / middle, "hr@5": float(middle <= 5), "catalogue_auc": 0.5}


def test_a_random_scorer_has_an_auc_of_one_half(tmp_path):
    store = store_of(tmp_path, [[1, 2, 3]] * 400, items=50)
    random = Table(torch.rand(400, 51, generator=torch.Generator().manual_seed(0)))
    result = measure(store, random, Evaluation(metrics=(CatalogueAUC(),)))
    deviation = np.sqrt(1 / 12 / 400)
    assert result.kept["catalogue_auc"] == pytest.approx(0.5, abs=4 * deviation)
    assert result.masked["catalogue_auc"] == pytest.approx(0.5, abs=4 * deviation)


def test_masking_leaves_a_target_of_the_history_a_candidate(tmp_path):
    store = store_of(tmp_path, [[1, 2, 3, 1]], items=5)
    result = measure(store, Table(torch.tensor([[0.0, 3, 4, 5, 9, 1]])), Evaluation(metrics=(MRR(),)))
    assert result.ranks["kept"].values.tolist() == [4]  # 4, 3, 2, then 1
    assert result.ranks["masked"].values.tolist() == [2]  # 2 and 3 are seen, and so is 1, but it is the target
    assert [result.ranks[h].candidates.tolist() for h in ("kept", "masked")] == [[5], [3]]


def test_neither_the_size_nor_the_order_of_batches_changes_a_digit(store):
    results = [measure(store, ties(), Evaluation(), tokens) for tokens in (8, 100, 10_000)]
    assert results[0].masked == results[1].masked == results[2].masked
    assert results[0].kept == results[1].kept == results[2].kept


def test_the_values_that_count_are_those_of_the_stated_history(store):
    for history in ("masked", "kept"):
        result = measure(store, ties(), Evaluation(history=history))
        assert result.values == getattr(result, history) and result.card["history"] == history
    assert result.masked != result.kept


def test_a_sample_is_fixed_by_its_seed_and_stated(store):
    config = Evaluation(max_users=7, seed=3)
    users = config.users(store, "test")
    assert len(set(users.tolist())) == 7 and users.tolist() == sorted(users) == config.users(store, "test").tolist()
    assert users.tolist() != Evaluation(max_users=7, seed=4).users(store, "test").tolist()
    result = measure(store, ties(), config)
    assert result.targets.users.tolist() == users.tolist()
    assert result.card["users"] == 7 and result.card["sample"] == {"max_users": 7, "seed": 3}
    assert Evaluation(max_users=USERS).users(store, "test").tolist() == list(range(USERS))


def test_scores_that_are_not_numbers_are_refused_with_the_number_of_users(store):
    scorer = ties()
    scorer.scores[[3, 5], 2] = np.nan
    with pytest.raises(UserError, match=f"NaN.* to 2 of {USERS} users"):
        measure(store, scorer, Evaluation())


def test_an_empty_part_is_refused(tmp_path):
    store = store_of(tmp_path, [[1, 2], [2, 1]])
    with pytest.raises(UserError, match="Nobody takes part in test"):
        measure(store, ties(2), Evaluation())


@pytest.mark.parametrize(("repeats", "message"), [(2, "0 were left out and 40"), (0, "40 were left out and 0")])
def test_users_who_are_left_out_or_ranked_twice_are_found_out(store, repeats, message):
    config, targets = Evaluation(), Targets.of(store, "test", store.users_of("test"))
    batches = [b for _ in range(repeats) for b in evaluation_batches(store, "test", Batches())]
    tally = count(ties(), batches, store, "test", targets, config, CPU)
    with pytest.raises(ValueError, match=message):
        summarise(tally, targets, store, "test", config, 50)


def test_a_scorer_that_contradicts_itself_is_found_out(store):
    class Moody(Table):
        def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
            return torch.rand(len(state), hi - lo)

    with pytest.raises(ValueError, match="different scores"):
        measure(store, Moody(ties().scores), Evaluation(memory_mb=0))


def test_results_are_written_with_raw_ids(store, tmp_path):
    result = measure(store, ties(), Evaluation())
    result.write(tmp_path / "out", store)

    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written == {"protocol": result.card, "values": {"masked": result.masked, "kept": result.kept}}
    table = pq.read_table(tmp_path / "out" / "per_user.parquet").to_pydict()
    assert table["user"] == [user_id(u) for u in range(USERS)]
    assert table["history_events"] == (store.cuts[:, 1] - store.histories.offsets[:-1]).tolist()
    assert np.mean(table["ndcg@10_masked"]) == result.masked["ndcg@10"]
    for user in range(USERS):
        items = store.histories.items[store.cuts[user, 1] : store.histories.offsets[user + 1]]
        assert sorted(table["target"][user]) == sorted(item_id(i) for i in set(items.tolist()))
        assert table["rank_kept"][user] == sorted(table["rank_kept"][user])
    assert table["candidates_kept"] == [ITEMS] * USERS


def test_targets_and_their_ranks_are_written_in_the_same_order(tmp_path):
    store = store_of(tmp_path / "store", [[1, 2, 3, 4]], items=6, cuts=[(1, 2)])
    result = measure(store, Table(torch.tensor([[0.0, 1, 2, 3, 9, 5, 6]])), Evaluation())
    result.write(tmp_path / "out", store)
    table = pq.read_table(tmp_path / "out" / "per_user.parquet").to_pydict()
    assert table["target"] == [[item_id(4), item_id(3)]] and table["rank_kept"] == [[1, 4]]


def test_results_are_written_without_pyarrow_too(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = measure(store, ties(), Evaluation())
    result.write(tmp_path / "out", store)
    with np.load(tmp_path / "out" / "per_user.npz") as arrays:
        assert arrays["user"].tolist() == list(range(USERS))
        assert arrays["hr@10_kept"].mean() == result.kept["hr@10"]
        assert len(arrays["target"]) == len(arrays["rank_masked"]) == arrays["offsets"][-1]


def test_the_card_states_the_protocol():
    store_card = {
        "key": "abc",
        "counts": {"users": 3},
        "prepare": {"min_user_events": 5},
        "split": {"kind": "ratio"},
        "files": {},
    }
    card = protocol(store_card, Evaluation(metrics=(NDCG(k=5), MRR())), "test", 50, 3)
    assert card["data"] == {"key": "abc", "counts": {"users": 3}, "tie_rule": None, "time_unit": None}
    assert card["filters"] == {"min_user_events": 5} and card["split"] == {"kind": "ratio"}
    assert (card["part"], card["users"], card["max_length"], card["history"]) == ("test", 3, 50, "masked")
    assert (card["ties"], card["request_time"], card["turborec"]) == (TIES, "none", turborec.__version__)
    assert card["metrics"]["mrr"].startswith("Mean reciprocal rank: 1 / r")


def test_a_recipe_names_metrics_by_kind():
    tree = {"metrics": [{"kind": "ndcg", "k": 7}, {"kind": "mrr"}], "history": "kept"}
    config = validate(Evaluation, tree, "The recipe")
    assert config.metrics == (NDCG(k=7), MRR())
    assert validate(Evaluation, json.loads(config.model_dump_json()), "The recipe") == config


def test_a_metric_named_twice_is_refused():
    with pytest.raises(UserError, match="metrics: ndcg@7 must be named once"):
        validate(Evaluation, {"metrics": [{"kind": "ndcg", "k": 7}, {"kind": "ndcg", "k": 7}]}, "The recipe")
