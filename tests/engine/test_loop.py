import copy
import math
import signal
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch import nn

from turborec import recipes
from turborec.contract import Loss, Model, Term
from turborec.engine import loop
from turborec.engine.interrupt import interruptible
from turborec.engine.loop import Stage
from turborec.engine.optim import AdamW, Cosine, Linear
from turborec.errors import UserError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Points:
    x: torch.Tensor
    y: torch.Tensor

    def num_targets(self):
        return len(self.x)

    def to(self, device):
        return self

    def split(self, parts):
        size = -(-len(self.x) // parts)
        return [Points(x, y) for x, y in zip(self.x.split(size), self.y.split(size), strict=True)]


class Slope(Model):
    """A regression with a second term that counts only some of the rows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch):
        error = (self.linear(batch.x)[:, 0] - batch.y).square()
        odd = batch.y > 0
        return Loss({"all": Term(error.sum(), len(error)), "some": Term(error[odd].sum(), int(odd.sum()), weight=0.5)})

    def counts(self, batch):
        return {"some": int((batch.y > 0).sum())}

    def scorer(self):
        raise AssertionError("nothing is scored here")


class Epoch:
    key = number = 0

    def __init__(self, steps, poison=None):
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            Points(torch.randn(7, 3, generator=generator), torch.randn(7, generator=generator)) for _ in range(steps)
        ]
        if poison is not None:
            self.batches[poison].y[0] = math.nan

    def __len__(self):
        return len(self.batches)

    def batch(self, step):
        return self.batches[step]


def begin(stage):
    torch.manual_seed(0)
    return loop.start(Slope(), stage, CPU)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulation_changes_nothing_though_terms_count_differently(parts):
    once, often = Stage(precision="float32"), Stage(precision="float32", accumulate=parts)
    first, second = begin(once), begin(often)
    records = [list(loop.fit(state, Epoch(4), stage, CPU)) for state, stage in ((first, once), (second, often))]
    assert torch.allclose(weights(first), weights(second), atol=1e-6)
    assert [r.loss for r in records[0]] == pytest.approx([r.loss for r in records[1]], rel=1e-6)


class Greedy(Slope):
    """Finds no memory for more than two rows at a time; the last of which it has computed something with before."""

    def forward(self, batch):
        found = super().forward(batch)
        if len(batch.x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found


def test_where_memory_does_not_suffice_batches_are_computed_in_more_parts(caplog):
    stage, parted = Stage(precision="float32", clip_norm=0.5), Stage(precision="float32", clip_norm=0.5, accumulate=4)
    torch.manual_seed(0)
    short = loop.start(Greedy(), stage, CPU)
    records = [list(loop.fit(state, Epoch(4), one, CPU)) for state, one in ((short, stage), (begin(parted), parted))]
    assert [vars(r) | {"seconds": 0, "waited": 0, "prepared": 0} for r in records[0]] == [
        vars(r) | {"seconds": 0, "waited": 0, "prepared": 0} for r in records[1]
    ]
    assert short.parts == 4 and short.capture()[1]["parts"] == 4
    assert [text.partition(":")[0] for text in caplog.messages] == ["Out of memory after step 0"] * 2
    again = loop.start(Greedy(), stage, CPU)
    again.restore(*copy.deepcopy(short.capture()))
    assert again.parts == 4


def test_what_does_not_fit_in_any_parts_is_told(monkeypatch):
    monkeypatch.setattr(Points, "split", lambda self, parts: [self])
    with pytest.raises(torch.OutOfMemoryError):
        list(loop.fit(loop.start(Greedy(), Stage(), CPU), Epoch(1), Stage(), CPU))


def test_the_loss_is_divided_once_by_its_count():
    state, batch = begin(Stage(precision="float32")), Epoch(1).batch(0)
    error = (state.model.linear(batch.x)[:, 0] - batch.y).square().detach()
    record = next(loop.fit(state, Epoch(1), Stage(precision="float32"), CPU))
    assert record.losses["all"] == pytest.approx(error.mean().item())
    assert record.losses["some"] == pytest.approx(error[batch.y > 0].mean().item())
    assert record.loss == pytest.approx((error.mean() + 0.5 * error[batch.y > 0].mean()).item())


def test_the_schedule_follows_the_progress_of_the_stage():
    stage = Stage(epochs=2, optimizer=AdamW(lr=0.1), schedule=Linear())
    state = begin(stage)
    rates = [r.lr for r in loop.fit(state, Epoch(4), stage, CPU)]
    assert rates == pytest.approx([0.1 * (1 - (s + 0.5) / 8) for s in range(4)])


def test_no_step_has_a_rate_of_zero():
    stage = Stage(epochs=1, optimizer=AdamW(lr=0.1), schedule=Cosine(warmup=0.5))
    rates = [r.lr for r in loop.fit(begin(stage), Epoch(4), stage, CPU)]
    assert rates == pytest.approx([0.025, 0.075, 0.0853553, 0.0146447], rel=1e-5)


def test_an_epoch_goes_on_from_the_position():
    stage = Stage()
    whole, parted = begin(stage), begin(stage)
    list(loop.fit(whole, Epoch(5), stage, CPU))
    list(islice(loop.fit(parted, Epoch(5), stage, CPU), 2))
    rest = list(loop.fit(parted, Epoch(5), stage, CPU))
    assert [r.position.step for r in rest] == [3, 4, 5] and rest[-1].position.global_step == 5
    assert torch.equal(weights(whole), weights(parted))


def test_a_captured_state_restored_elsewhere_goes_on_to_the_bit():
    stage = Stage(average=0.9, clip_norm=0.5)
    whole, parted = begin(stage), begin(stage)
    list(loop.fit(whole, Epoch(6), stage, CPU))
    list(islice(loop.fit(parted, Epoch(6), stage, CPU), 3))
    tensors, facts = copy.deepcopy(parted.capture())
    torch.manual_seed(5)
    resumed = loop.start(Slope(), stage, CPU)
    resumed.restore(tensors, facts)
    list(loop.fit(resumed, Epoch(6), stage, CPU))
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(whole.average[name], resumed.average[name]) for name in whole.average)
    assert whole.capture()[1] == resumed.capture()[1]


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    state = begin(Stage())
    steps = loop.fit(state, Epoch(3, poison=1), Stage(), CPU)
    next(steps)
    before = weights(state)
    with pytest.raises(UserError, match=r"not finite .* epoch 1, step 2"):
        next(steps)
    assert torch.equal(weights(state), before)


class Root(Slope):
    """At weights of zero the loss is 0 and its gradient is not a number."""

    def forward(self, batch):
        return Loss({"all": Term(self.linear.weight.square().sum().sqrt(), len(batch.x))})


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    torch.manual_seed(0)
    state = loop.start(Root(), Stage(precision="float32"), CPU)
    with torch.no_grad():
        state.model.linear.weight.zero_()
    before = weights(state)
    with pytest.raises(UserError, match="gradient is not finite"):
        next(loop.fit(state, Epoch(1), Stage(precision="float32"), CPU))
    assert torch.equal(weights(state), before)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_clipping_sees_the_true_gradient_whatever_the_scale(scale):
    stage = Stage(clip_norm=1e-3, precision="float32", optimizer=AdamW(lr=0.1, eps=1.0))
    state = begin(stage)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=True)
    before = weights(state)
    record = next(loop.fit(state, Epoch(1), stage, CPU))
    # With eps = 1 the first Adam step is close to lr * gradient, so its length tells the length of the clipped gradient.
    assert record.gradient_norm > 1
    assert (weights(state) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_the_average_follows_its_formula_and_is_put_back():
    stage = Stage(average=0.5)
    state = begin(stage)
    expected, step = None, 0
    for record in loop.fit(state, Epoch(4), stage, CPU):
        step, now = record.position.global_step, weights(state)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    own = weights(state)
    with state.averaged():
        assert torch.allclose(weights(state), expected, atol=1e-6)
    assert torch.equal(weights(state), own)


def test_a_signal_is_answered_when_asked_for():
    with interruptible() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption and interruption.signal == signal.SIGTERM


def test_a_second_signal_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin by ignoring it
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"accumulate": 2, "exchange": {"static_graph": True}}, "static_graph cannot be promised"),
        ({"compile": "layers", "exchange": {"shard": "tables"}}, "no graph for"),
        ({"optimizer": {"kind": "muon"}, "exchange": {"shard": "parameters"}}, "needs an optimizer"),
        ({"optimizer": {"tables": "rows"}, "exchange": {"shard": "parameters"}}, "needs an optimizer"),
        ({"optimizer": {"tables": "rows", "clip_rows": 1.0}, "exchange": {"shard": "tables"}}, "cannot count"),
    ],
)
def test_what_does_not_go_together_in_several_processes_is_refused(stage, told):
    with pytest.raises(UserError, match=told):
        recipes.from_tree(
            {"data": {"source": {"kind": "online_retail"}}, "model": {"kind": "sasrec"}, "train": stage}, "the test"
        )
