"""What must not change the mathematics does not, with dropout on."""

import numpy as np
import pytest
import torch

from stores import store_of
from turborec.data.batch import DataSpec
from turborec.data.loader import Batches, TrainingBatches
from turborec.engine import loop
from turborec.engine.loop import Stage
from turborec.models.sasrec import Config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = np.random.RandomState(0)
    histories = [generator.randint(1, 41, generator.randint(3, 40)).tolist() for _ in range(50)]
    return store_of(tmp_path_factory.mktemp("invariants") / "store", histories, items=40)


def model_of(dropout=0.3):
    torch.manual_seed(0)
    return Config(width=16, heads=2, hidden=32, dropout=dropout).build(DataSpec(50, 40, 12))


def epoch_of(store, **changes):
    return TrainingBatches(store, Batches(**({"max_length": 12, "tokens": 128, "seams": "fixed"} | changes)), seed=1).epoch(0)


def trained(store, stage, **changes):
    state = loop.start(model_of(), stage, CPU)
    losses = [record.loss for record in loop.fit(state, epoch_of(store, **changes), stage, CPU)]
    return losses, torch.cat([p.detach().flatten() for p in state.model.parameters()])


def test_two_trainings_are_equal_to_the_bit(store):
    (first, one), (again, two) = trained(store, Stage()), trained(store, Stage())
    assert first == again and torch.equal(one, two)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(store, parts):
    once, whole = trained(store, Stage(precision="float32"))
    often, summed = trained(store, Stage(precision="float32", accumulate=parts))
    assert often == pytest.approx(once, rel=1e-5)
    assert torch.allclose(whole, summed, atol=1e-4)


@pytest.mark.parametrize("changes", [{"tokens": 16}, {"tokens": 4096}, {"shapes": 1}, {"tokens": 48, "shapes": 3}])
def test_the_loss_of_an_epoch_does_not_depend_on_how_its_rows_are_batched(store, changes):
    model = model_of()
    model.train()

    def total(plan):
        return sum(model(plan.batch(step)).terms["next_item"].sum.item() for step in range(len(plan)))

    assert total(epoch_of(store, **changes)) == pytest.approx(total(epoch_of(store)), rel=1e-6)


def test_bfloat16_follows_float32_within_two_percent(store):
    exact, _ = trained(store, Stage(precision="float32"))
    rounded, _ = trained(store, Stage(precision="bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.02)


def test_no_batch_holds_an_event_of_validation_or_test(store):
    """Every event shown or asked for lies before its user's first cut; found by looking each one up in the histories."""
    histories, last = store.histories, store.cuts[:, 0] - store.histories.offsets[:-1]
    plan = epoch_of(store, seams="all")
    for step in range(len(plan)):
        batch = plan.batch(step)
        for row, user in enumerate(batch.users.tolist()):
            length = int(batch.lengths[row])
            own = histories.items[histories.offsets[user] : histories.offsets[user] + last[user]].tolist()
            shown = [*batch.items[row, :length].tolist(), int(batch.targets[row, length - 1])]
            assert any(own[at : at + length + 1] == shown for at in range(len(own)))
