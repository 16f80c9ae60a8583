"""Steps that are replayed are those of the plain loop; on CUDA they come from recordings, elsewhere the same code computes."""

import math

import pytest
import torch

from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch
from turborec.engine import loop
from turborec.engine.loop import Stage
from turborec.engine.optim import AdamW
from turborec.engine.replay import Replays
from turborec.errors import UserError
from turborec.losses import Focal, SampledSoftmax
from turborec.models import bert4rec, sasrec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPEC = DataSpec(5, 211, 12)
MODELS = {
    "bert4rec": bert4rec.Config(width=16, heads=2, layers=2, hidden=32, tied=False, loss=Focal(gamma=1.0)),
    "every_event": bert4rec.Config(width=16, heads=2, layers=1, hidden=32, loss_on="every_event"),
    "sasrec": sasrec.Config(width=16, heads=2, layers=2, hidden=32),
}


class Batches:
    key = number = 0

    def __len__(self):
        return 24

    def batch(self, step):
        return SequenceBatch.example(SPEC, 30, torch.Generator().manual_seed(step % 8))


def trained(model, stage):
    torch.manual_seed(0)
    made = MODELS[model].build(SPEC).to(DEVICE)
    state = loop.start(made, stage, DEVICE)
    if stage.replay:
        state.replays = Replays(made, state.optimizer, stage.clip_norm, torch.float32, DEVICE)
    return made, state, list(loop.fit(state, Batches(), stage, DEVICE))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("model", MODELS)
def test_they_come_to_the_same_weights(model, clip):
    changes = {"clip_norm": clip, "precision": "float32", "optimizer": AdamW(weight_decay=0.1), "epochs": 3}
    plain, _, expected = trained(model, Stage(**changes, schedule={"kind": "linear", "warmup": 0.2}))
    replayed, state, got = trained(model, Stage(**changes, schedule={"kind": "linear", "warmup": 0.2}, replay=True))
    assert (len(state.replays) > 0) == (DEVICE.type == "cuda")
    for a, b in zip(expected, got, strict=True):
        assert a.losses.keys() == b.losses.keys() and a.targets == b.targets and a.asked == b.asked and a.lr == b.lr
        assert b.loss == pytest.approx(a.loss, rel=1e-4) and b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-3)
    others = dict(replayed.named_parameters())
    for name, one in plain.named_parameters():
        if not name.endswith("k.bias"):  # whose gradient is 0: Adam makes steps of its rounding
            assert torch.allclose(one, others[name], atol=2e-4), name
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(expected[-1].lr)


def test_a_loss_that_is_not_a_number_changes_no_weight():
    model = MODELS["bert4rec"].build(SPEC).to(DEVICE)
    stage = Stage(precision="float32")
    state = loop.start(model, stage, DEVICE)
    replays = Replays(model, state.optimizer, 1.0, torch.float32, DEVICE)
    batch = replays.ready(Batches().batch(0))
    losses = [replays.step(batch, 1e-3)[0] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    with torch.no_grad():
        model.norm.weight[3] = math.nan
    before = [p.clone() for p in model.parameters()]
    assert not math.isfinite(replays.step(batch, 1e-3)[0])
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_come_again_and_nothing_is_added(model):
    made = MODELS[model].build(SPEC)
    shapes, exact = set(), set()
    for seed in range(40):
        batch = SequenceBatch.example(SPEC, 200, torch.Generator().manual_seed(seed))
        asked, plain = made.asked(batch, again=True), made.asked(batch)
        assert isinstance(asked, AskedBatch) and made.asked(asked) is asked
        assert asked.count == plain.count == len(plain.where) and torch.equal(asked.wanted[asked.wanted != 0], plain.wanted)
        made.eval()
        loss, other = made(asked).terms, made(plain).terms
        for name in loss:
            assert loss[name].count == other[name].count
            assert torch.allclose(loss[name].sum, other[name].sum, rtol=1e-5)
        shapes.add(tuple(t.shape for t in asked.tensors().values()))
        exact.add(tuple(t.shape for t in plain.tensors().values()))
    assert len(shapes) <= 2 < len(exact)


@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 2}, {"optimizer": {"kind": "muon"}}, {"precision": "float16"}, {"compile_mode": "reduce-overhead"}],
)
def test_what_cannot_be_replayed_is_refused(changes):
    with pytest.raises(ValueError, match="replay records whole steps"):
        Stage(replay=True, **changes)


def test_models_that_cannot_be_replayed_are_named():
    model = MODELS["sasrec"].model_copy(update={"loss": SampledSoftmax(negatives=5)}).build(SPEC)
    with pytest.raises(UserError, match="SASRec with these settings"):
        loop.start(model, Stage(replay=True), DEVICE)
