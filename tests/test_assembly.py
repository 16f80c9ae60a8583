"""What a recipe names, put together."""

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import recipes
from turborec.assembly import assemble
from turborec.bench import levers, matrix, step
from turborec.bench.evidence import observe
from turborec.data.loader import TrainingBatches
from turborec.stores import training_batches

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32, "dropout": 0.3},
}


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]
    return store_of(tmp_path / "store", histories, items=30)


def test_the_same_seed_draws_the_same_weights(store):
    one, other = (assemble(recipes.from_tree(TREE | {"seed": 3}, "the test"), store) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("what", ["layers", "model"])
def test_what_is_compiled_computes_the_same_and_is_seen_to_be_compiled(store, what):
    recipe = recipes.from_tree(TREE, "the test")
    compiled = levers.changed(recipe, (f"train.compile={what}",))
    batch = recipe.batches
    losses = []
    torch.compiler.reset()  # what other tests have compiled is not compiled again
    for chosen in (recipe, compiled):
        assembly = assemble(chosen, store)
        work = matrix.contestant("recipe", chosen, store, "cpu")
        seen = observe(work)
        assert (seen.graphs > 0) == (chosen is compiled) and (seen.breaks == 0 or what == "model")
        graphs = step.compiled()[0]
        for _ in range(10):
            next(work.steps)  # of other sizes
        assert step.compiled()[0] <= graphs + 2  # one row, or one event, is a case of its own
        epoch = TrainingBatches(store, batch, 1).epoch(0)
        losses.append(float(assembly.model(epoch.batch(0)).terms["next_item"].sum.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert list(assemble(compiled, store).model.state_dict()) == list(assemble(recipe, store).model.state_dict())


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "ss4rec", "gru4rec"])
def test_layers_that_are_computed_again_learn_the_same(kind, tmp_path):
    """Dropout on: what is drawn again going backward is what was drawn before."""
    store = store_of(tmp_path / "store", [[1, 2, 3, 4, 5, 6], [3, 1, 2, 6, 5], [2, 4, 6, 1]])
    found = []
    for recompute in (False, True):
        tree = {
            "data": {"source": {"kind": "online_retail"}},
            "batches": {"max_length": 6, "tokens": 64},
            "model": {"kind": kind, "width": 8, "dropout": 0.5},
            "train": {"recompute": recompute, "precision": "float32"},
        }
        recipe = recipes.from_tree(tree, "the test")
        model = assemble(recipe, store, "cpu").model
        model.train()
        batch = training_batches(recipe, store).epoch(0).batch(0)
        loss = next(iter(model(batch).terms.values())).sum
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()], _held(model, batch)))
    (plain, gradients, held), (again, others, less) = found
    assert torch.equal(plain, again) and less < held
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True) if a is not None)


def _held(model, batch):
    """Numbers that are kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        model(batch)
    return sum(kept)
