"""Only results of one task are put side by side, user by user, whatever order they were written in."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results import edit, results_of, run_of, store_for_results
from turborec.contestants import differing_choices, merge_seeds, metrics_of, read_all
from turborec.errors import UserError


@pytest.fixture
def store(tmp_path):
    return store_for_results(tmp_path / "store")


@pytest.fixture
def runs(tmp_path, store):
    """Two runs that differ in their recipes."""
    return [str(run_of(tmp_path / name, store, seed=seed, width=width)) for name, seed, width in (("a", 1, 16), ("b", 2, 32))]


def card_of(run, model="sasrec"):
    return Path(run) / "evaluation" / "test" / model / "result.json"


def test_a_run_is_its_model_and_an_anchor_goes_by_its_name(runs):
    a, anchor, b = read_all([runs[0], f"{runs[0]}/popularity", f"{runs[1]}/"], "test")
    assert [(one.name, one.model, one.seed) for one in (a, anchor, b)] == [
        ("a", "sasrec", 1),
        ("popularity", "popularity", 1),
        ("b", "sasrec", 2),
    ]
    written = json.loads(card_of(runs[0]).read_text())["values"]["masked"]
    assert a.values["masked"]["ndcg@10"].mean() == pytest.approx(written["ndcg@10"], abs=1e-12)
    assert "coverage@10" not in metrics_of([a, b], "masked")


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path, store):
    folders = [run_of(tmp_path / group / "run", store) for group in ("old", "new")]
    named = read_all([*map(str, folders), f"{folders[0]}/popularity"], "test")
    assert [one.name for one in named] == ["old/run", "new/run", "run/popularity"]


def test_users_are_joined_by_their_ids(runs):
    whole = read_all(runs, "test")
    path = f"{runs[1]}/evaluation/test/sasrec/per_user.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    shuffled = read_all(runs, "test")
    assert shuffled[1].users == whole[0].users
    for name, values in whole[1].values["kept"].items():
        np.testing.assert_array_equal(shuffled[1].values["kept"][name], values)


def test_other_users_are_refused(runs):
    path = f"{runs[1]}/evaluation/test/sasrec/per_user.parquet"
    table = pq.read_table(path).slice(3)
    pq.write_table(table, path)
    result = json.loads(card_of(runs[1]).read_text())
    for history, values in result["values"].items():
        values |= {
            n: float(table[f"{n}_{history}"].to_numpy().mean()) for n in values if f"{n}_{history}" in table.column_names
        }
    card_of(runs[1]).write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"different users: 3 of the first's are not in the second and 0 .* 'user-000000'"):
        read_all(runs, "test")


@pytest.mark.parametrize("change", [lambda v: v * 2, lambda v: np.where(np.arange(len(v)), v, np.nan), lambda v: v + 1e-3])
def test_values_of_users_that_contradict_the_result_are_refused(runs, change):
    path = f"{runs[1]}/evaluation/test/sasrec/per_user.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("mrr_masked")
    changed = table.set_column(place, "mrr_masked", pa.array(change(table["mrr_masked"].to_numpy())))
    pq.write_table(changed, path)
    with pytest.raises(UserError, match=r"the mrr .masked. of the users has the mean"):
        read_all(runs, "test")


BROKEN = {
    "null": "null",
    "a list": "[]",
    "no data": '{"protocol": {"data": null}, "values": {"masked": {}, "kept": {}}}',
    "no key": '{"protocol": {"data": {}}, "values": {"masked": {}, "kept": {}}}',
    "no values": '{"protocol": {"data": {"key": "x"}}}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_results_that_are_none_are_named(runs, name):
    card_of(runs[0]).write_text(BROKEN[name])
    with pytest.raises(UserError, match="evaluate the run again"):
        read_all(runs, "test")


def test_a_recipe_without_a_model_is_named(runs):
    Path(runs[0], "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="not the resolved recipe of a run"):
        read_all(runs, "test")


CARDS = {
    "data": ({"data": {"key": "f" * 16, "counts": {}, "tie_rule": None, "time_unit": None}}, "data.key: 0000000000000000 in a"),
    "filters": ({"filters": {"min_user_events": 3}}, 'filters: not stated in a, {"min_user_events": 3} in b'),
    "split": ({"split": {"kind": "ratio"}}, "split"),
    "users": ({"users": 59}, "users: 60 in a, 59 in b"),
    "sample": ({"sample": {"max_users": 9, "seed": 0}}, "sample"),
    "candidates": ({"candidates": "a hundred"}, "candidates: the whole catalogue in a, a hundred in b"),
    "history": ({"history": "kept"}, "history: masked in a, kept in b"),
    "repeated targets": ({"repeated_targets": "left out"}, "repeated_targets"),
    "ties": ({"ties": "lucky"}, "ties"),
    "request time": ({"request_time": "known"}, "request_time: none in a, known in b"),
    "definition": ({"metrics": {"hr@10": "something else"}}, "metrics.hr@10"),
    "version": ({"turborec": "9"}, "turborec: "),
}


@pytest.mark.parametrize("name", CARDS)
def test_another_protocol_is_refused_with_what_differs(runs, name):
    changes, expected = CARDS[name]
    edit(card_of(runs[1]), **changes)
    with pytest.raises(UserError) as refusal:
        read_all(runs, "test")
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith("a and b were measured by different protocols")
    assert sum(line.startswith("  ") for line in lines) >= 1 and expected in "\n".join(lines)


def test_everything_that_differs_is_listed_and_nothing_else(runs, tmp_path):
    edit(tmp_path / "b" / "evaluation" / "test" / "sasrec" / "result.json", users=59, ties="lucky")
    with pytest.raises(UserError) as refusal:
        read_all(runs, "test")
    listed = [line.strip().split(":")[0] for line in str(refusal.value).splitlines() if line.startswith("  ")]
    assert listed == ["users", "ties"]


def test_which_history_counts_does_not_matter_where_one_is_named(runs):
    edit(card_of(runs[1]), history="kept")
    with pytest.raises(UserError, match="--history says which to compare"):
        read_all(runs, "test")
    assert len(read_all(runs, "test", history="masked")) == 2


def test_what_a_model_chooses_is_stated_and_not_refused(tmp_path, store):
    long, short = run_of(tmp_path / "long", store), run_of(tmp_path / "short", store, max_length=4)
    edit(short / "evaluation" / "test" / "sasrec" / "result.json", training_windows={"max_length": 4})
    assert differing_choices(read_all([str(long), str(short)], "test")) == [
        "max_length differs: 12 in long, 4 in short. That is the model's choice, not a part of the task.",
        'training_windows differs: not stated in long, {"max_length": 4} in short. '
        "That is the model's choice, not a part of the task.",
    ]


def test_settings_that_differ_are_named_one_by_one_however_many_are_stated(runs):
    options = {"mixers": ["s5", "mamba"], "intervals": {"kind": "log", "unit": 86400.0, "limit": 864000.0, "event": 1.0}}
    others = options | {"intervals": options["intervals"] | {"event": 0.0}, "repeat_bias": True}
    for run, said in zip(runs, (options, others), strict=True):
        edit(card_of(run), model_options=said)
    assert [text for text in differing_choices(read_all(runs, "test")) if "model_options" in text] == [
        "model_options differs: intervals.event 1.0 in a, 0.0 in b; repeat_bias not stated in a, True in b. "
        "That is the model's choice, not a part of the task."
    ]


def test_a_metric_that_only_one_has_is_left_out(runs, tmp_path):
    path = tmp_path / "b" / "evaluation" / "test" / "sasrec"
    metrics = json.loads((path / "result.json").read_text())["protocol"]["metrics"]
    del metrics["hr@20"]
    edit(path / "result.json", metrics=metrics)
    table = pq.read_table(path / "per_user.parquet")
    pq.write_table(table.drop_columns(["hr@20_masked", "hr@20_kept"]), path / "per_user.parquet")
    both = read_all(runs, "test")
    assert "hr@20" not in metrics_of(both, "masked") and "hr@10" in metrics_of(both, "masked")


def test_seeds_of_one_recipe_are_averaged_user_by_user(tmp_path, store):
    folders = [run_of(tmp_path / f"s{seed}", store, seed=seed) for seed in (1, 2)]
    other = run_of(tmp_path / "other", store, seed=1, width=32)
    everybody = read_all([str(f) for f in (*folders, other)], "test")
    merged, remarks = merge_seeds(everybody)
    assert [one.name for one in merged] == ["s1 (2 seeds)", "other"]
    first, second = (one.values["masked"]["mrr"] for one in everybody[:2])
    np.testing.assert_allclose(merged[0].values["masked"]["mrr"], (first + second) / 2, atol=1e-15)
    assert remarks == [
        "s1 (seed 1), s2 (seed 2) are one recipe: each user's values are averaged over them, and they are one contestant."
    ]


def test_one_seed_twice_is_not_two_seeds(tmp_path, store):
    runs = [run_of(tmp_path / name, store, seed=1) for name in ("once", "again")]
    other = run_of(tmp_path / "other", store, seed=1, width=32)
    for run, commit in ((runs[0], "a" * 40), (runs[1], "b" * 40)):
        (run / "environment.json").write_text(json.dumps({"commit": commit, "dirty": False}))
    everybody = read_all([str(other), *map(str, runs)], "test")
    merged, remarks = merge_seeds(everybody)
    assert [one.name for one in merged] == ["other", "once", "again"] and remarks == []
    assert merge_seeds(everybody[1:])[1] == []
    assert "different versions of the code: commit aaaaaaaaaa for once, bbbbbbbbbb for again" in differing_choices(everybody)[0]


def test_where_there_are_only_seeds_each_is_a_contestant(tmp_path, store):
    folders = [run_of(tmp_path / f"s{seed}", store, seed=seed) for seed in (1, 2)]
    merged, remarks = merge_seeds(read_all([*map(str, folders)], "test"))
    assert [one.name for one in merged] == ["s1", "s2"] and "each is a contestant of its own" in remarks[0]


def test_results_of_a_bare_machine_are_read_with_the_store(runs, store, tmp_path, monkeypatch):
    whole = read_all(runs, "test")
    place = tmp_path / "b" / "evaluation" / "test" / "sasrec"
    (place / "per_user.parquet").unlink()
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "pyarrow", None)
        results_of(store, place, 0.2, 2)
    assert (place / "per_user.npz").is_file()
    again = read_all(runs, "test")
    assert again[1].users == whole[1].users and again[1].targets == whole[1].targets
    np.testing.assert_array_equal(again[1].values["masked"]["mrr"], whole[1].values["masked"]["mrr"])


MISTAKES = {
    "no run": (["{a}", "nowhere"], "neither a run folder .* nor RUN/MODEL"),
    "no such anchor": (["{a}", "{a}/popularty"], r"no results of 'popularty' .*did you mean 'popularity'"),
    "twice": (["{a}", "{a}/sasrec"], "are the same results"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(runs, name):
    arguments, expected = MISTAKES[name]
    with pytest.raises(UserError, match=expected):
        read_all([argument.format(a=runs[0]) for argument in arguments], "test")


def test_a_part_without_results_is_named(runs):
    with pytest.raises(UserError, match="no results of 'sasrec' on the validation part"):
        read_all(runs, "validation")


def test_damaged_results_are_named(runs):
    card_of(runs[1]).write_text("{")
    with pytest.raises(UserError, match=r"result\.json cannot be read"):
        read_all(runs, "test")
    card_of(runs[0]).with_name("per_user.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"per_user\.parquet cannot be read"):
        read_all([runs[0], f"{runs[0]}/popularity"], "test")
