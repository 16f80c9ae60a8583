"""Every recipe that ships: it loads, comes back from its own dump, builds, and trains two steps."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from stores import described, store_of
from turborec import recipes
from turborec.assembly import without_data
from turborec.contract import Counted
from turborec.data.batch import DataSpec, PairBatch
from turborec.data.loader import TrainingBatches
from turborec.data.pairs import PairBatches
from turborec.engine import loop
from turborec.errors import UserError
from turborec.recipe import dump, parse

CPU = torch.device("cpu")
NAMES = list(recipes.shipped())


def test_all_files_are_found():
    folder = Path(recipes.__file__).parent
    assert len(NAMES) == len(list(folder.rglob("*.y*ml"))) > 0
    assert all(name.count("/") == 1 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_recipe_loads_to_itself(name):
    recipe = recipes.load(name)
    assert recipes.from_tree(parse(dump(recipe), "dump"), "dump") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_it_says_in_its_first_line_what_it_is(name):
    first = recipes.find(name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 30


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps(name, tmp_path):
    recipe = recipes.load(name)
    generator = np.random.default_rng(0)
    store = store_of(tmp_path / "store", [generator.integers(1, 31, n).tolist() for n in (4, 9, 30, 12)], items=30)
    named = ("image", "text", "audio", *(getattr(recipe.model, "features", None) or ()))
    model = recipe.model.build(described(DataSpec(4, 30, recipe.batches.max_length), store, tuple(dict.fromkeys(named))))
    if isinstance(model, Counted):
        model.count(store.training())
        return
    for stage in recipe.stages:
        state = loop.start(model, stage, CPU)
        batches = PairBatches if recipe.model.batch is PairBatch else TrainingBatches
        plan = batches(store, recipe.batches.model_copy(update={"tokens": 24}), seed=1).epoch(0)
        records = list(islice(loop.fit(state, plan, stage, CPU), 2))
        assert len(records) == 2 and all(r.loss > 0 for r in records)


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one():
    with pytest.raises(UserError, match=r"No recipe is called 'ml-1m/sasrek' \(did you mean 'ml-1m/sasrec'"):
        recipes.load("ml-1m/sasrek")


def test_three_mistakes_are_told_at_once():
    with pytest.raises(UserError) as error:
        recipes.load("ml-1m/sasrec", ["model.kind=sasrecs", "train.epochs=many", "data.split.kind=leave_two_out"])
    text = str(error.value)
    assert "has 3 mistakes" in text
    assert "model.kind: nothing is called 'sasrecs' (did you mean 'sasrec'" in text
    assert "train.epochs: expected a whole number, got 'many'" in text
    assert "data.split.kind: nothing is called 'leave_two_out' (did you mean 'leave_one_out'?)" in text


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"model.kind: nothing is called 'sasrecs' \(did you mean 'sasrec'"):
        recipes.load("ml-1m/sasrec", ["model.kind=sasrecs"])


def test_the_selecting_value_must_be_measured():
    with pytest.raises(UserError, match=r"'ndcg@11' is not among the evaluation's metrics of ranks"):
        recipes.load("ml-1m/sasrec", ["select=ndcg@11"])


def test_a_wrong_selection_is_told_beside_other_mistakes():
    with pytest.raises(UserError) as error:
        recipes.load("ml-1m/sasrec", ["select=ndgc@10", "train.epochs=many"])
    assert "has 2 mistakes" in str(error.value) and "'ndgc@10' is not among" in str(error.value)


SIZES = {
    "5m": (18_345, 5_118_250),
    "85m": (159_749, 85_178_118),
    "130m": (159_749, 130_095_750),
    "430m": (159_749, 429_153_286),
    "85m-tied": (159_749, 84_002_950),
    "130m-tied": (159_749, 132_354_950),
    "430m-tied": (159_749, 442_416_390),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_studies_sizes_have_their_parameters_to_the_digit(size):
    """From 85m on 2 h N + N + L (12 h^2 + 13 h) + h^2 + h + 6 h for N rows, the one of padding and mask included.

    With one table for both ends h N in the place of 2 h N.
    """
    items, expected = SIZES[size]
    recipe = recipes.load(f"amazon-electronics/bert4rec-{size}")
    found, width = without_data(recipe, items), recipe.model.width
    assert found.total == found.trained == expected and found.body + found.tables == expected
    assert found.tables == (items + 1) * ((1 if recipe.model.tied else 2) * width + 1)


@pytest.mark.parametrize(
    ("size", "words", "expected"), [("5m", 12_000, 4.5e6), ("minilm", 30_522, 25.2e6), ("base", 50_265, 144e6)]
)
def test_recformer_s_sizes_have_their_parameters_to_the_digit(size, words, expected, tmp_path):
    """Longformer's: four tables and a norm, and of each layer seven maps and the feed-forward layer, with their norms.

    Left out: biases of global keys, which add the same to all that is compared, and, of the last layer where the first token
    alone stands for a text, what the others would look for and show.
    """
    recipe = recipes.load(f"mind-small/recformer-{size}")
    spec = described(DataSpec(1, 5, recipe.batches.max_length), store_of(tmp_path / "store", [[1, 2, 3]], items=5), ())
    assert spec.texts is not None
    spec = replace(spec, texts=replace(spec.texts, vocabulary=words))
    with torch.device("meta"):
        found = sum(weight.numel() for weight in recipe.model.build(spec).parameters())
    config = recipe.model
    width, layers, hidden = config.width, config.layers, config.hidden
    tables = (words + config.max_tokens + 2 + 4 + recipe.batches.max_length + 1 + 2) * width
    layer = 7 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width
    left_out = layers * width + (3 * (width**2 + width) if config.pooling == "first" else 0)
    last_norm = 2 * width if config.norm == "pre" else 0
    assert found == tables + layers * layer - left_out + last_norm == pytest.approx(expected, rel=0.01)


def test_what_adapters_train_is_counted_without_data():
    """As the study counted: 2 R D for each square map, with those of the head and the router."""
    for rank, kind in ((8, "lora"), (16, "ilora")):
        recipe = recipes.load("amazon-electronics/bert4rec-430m", [f"adapters={{kind: {kind}, rank: {rank}}}"])
        width, layers = recipe.model.width, recipe.model.layers
        maps = layers * (4 * 2 * width + 2 * 5 * width) + 2 * width
        router = 4 * (width + 1) if kind == "ilora" else 0
        found = without_data(recipe, 159_749)
        assert found.trained == rank * maps + router and found.total == 429_153_286 + found.trained


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "recbole", "name": "x", "benchmark_filename": ["train", "valid", "test"]},
        {"kind": "table", "events": "x.csv", "user": "u", "item": "i", "label": "part"},
    ],
)
def test_parts_that_the_data_state_are_not_dropped_without_a_word(source):
    tree = {"data": {"source": source}, "model": {"kind": "markov"}}
    with pytest.raises(UserError, match=r"state split=\{kind: labelled\}"):
        recipes.from_tree(tree, "the test")
    tree["data"]["split"] = {"kind": "labelled"}
    assert recipes.from_tree(tree, "the test").data.split.kind == "labelled"
