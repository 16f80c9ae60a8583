"""What SS4Rec knows of time, and that users followed event by event are those whose whole history is shown."""

from dataclasses import replace

import pytest
import torch

from scored import catalogue_scores
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.schema import UNKNOWN_TIME
from turborec.models import mamba4rec, s5rec, ss4rec
from turborec.nn.ssm import Gaps

SPEC = DataSpec(users=7, items=23, max_length=12)
TOLD = replace(SPEC, told=True)
DAY = 86_400


def built(module=ss4rec, spec=SPEC, **settings):
    torch.manual_seed(0)
    return module.Config(**settings).build(spec).eval()


def example(seed=1, told=False):
    batch = SequenceBatch.example(SPEC, 5, torch.Generator().manual_seed(seed))
    times = torch.where(batch.times == UNKNOWN_TIME, UNKNOWN_TIME, 10**9 + batch.times % 1000 // 10 + 100 * torch.arange(12))
    batch = replace(batch, times=times)
    last = batch.times.gather(1, batch.last()[:, None])[:, 0]
    return replace(batch, request=last + 1000) if told else batch


def states(model, batch):
    with torch.no_grad():
        return model._encode(batch)


@pytest.mark.parametrize("kind", ["raw", "log", "clip"])
@pytest.mark.parametrize("parametrisation", ["faithful", "stable"])
def test_what_comes_later_changes_nothing_before_it(kind, parametrisation):
    model, batch = built(intervals={"kind": kind}, parametrisation=parametrisation), example()
    before = states(model, batch)
    moved = batch.times.clone()
    moved[0, 7:] += 50
    after = states(model, replace(batch, times=moved))
    assert torch.equal(after[0, :7], before[0, :7]) and torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0, 7], before[0, 7])


def test_the_request_is_known_where_models_are_told_alone():
    model, batch = built(spec=TOLD), example(told=True)
    before = states(model, batch)
    after = states(model, replace(batch, request=batch.request + DAY))
    place = torch.arange(12) - batch.last()[:, None]
    assert torch.equal(after[place < 0], before[place < 0])
    assert not torch.isclose(after[place == 0], before[place == 0]).all(1).any()
    unknown = states(model, replace(batch, request=None))
    assert torch.equal(unknown[place < 0], before[place < 0]) and not torch.equal(unknown[place == 0], before[place == 0])
    assert torch.equal(states(built(), batch), states(built(), replace(batch, request=None)))


def test_an_unknown_gap_is_not_a_gap_of_zero():
    model, batch = built(), example()
    nothing_known = torch.full_like(batch.times, UNKNOWN_TIME)
    at_once = torch.where(batch.times == UNKNOWN_TIME, UNKNOWN_TIME, 10**9)
    before = [states(model, replace(batch, times=times)) for times in (nothing_known, at_once)]
    with torch.no_grad():
        model.steps.unknown += 0.5  # what training may do
    unknown, zero = (states(model, replace(batch, times=times)) for times in (nothing_known, at_once))
    assert not torch.isclose(unknown[:, 1], zero[:, 1]).all() and not torch.isclose(unknown, before[0]).all()
    assert not torch.isclose(zero[:, 0], before[1][:, 0]).all()  # nobody knows the gap of a first event
    own = model.steps(Gaps(torch.zeros(1, 2), torch.tensor([[False, True]])))[0]
    assert own[0] == model.steps.unknown.exp() and own[1] == model.steps.config.event


@pytest.mark.parametrize("gap", [0, 1, 20 * 365 * DAY])
def test_gaps_of_any_length_are_finite(gap):
    for kind in ("raw", "log", "clip"):
        model, batch = built(intervals={"kind": kind}).train(), example()
        times = torch.where(batch.times == UNKNOWN_TIME, UNKNOWN_TIME, 10**9 + gap * torch.arange(12))
        loss = model(replace(batch, times=times)).terms["next_item"].sum
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_milliseconds_are_seconds():
    batch = example()
    times = torch.where(batch.times == UNKNOWN_TIME, UNKNOWN_TIME, batch.times * 1000)
    plain, fine = built(), built(spec=replace(SPEC, ticks=1000))
    torch.testing.assert_close(states(fine, replace(batch, times=times)), states(plain, batch), rtol=1e-5, atol=1e-6)


def test_time_is_not_read_where_it_is_not_asked_for():
    batch = example()
    moved = replace(batch, times=batch.times // 3)
    for model in (built(intervals={"kind": "none"}), built(mixers=("mamba",)), built(mamba4rec)):
        assert torch.equal(states(model, moved), states(model, batch))
    for model in (built(mixers=("s5",)), built(s5rec)):
        assert not torch.equal(states(model, moved), states(model, batch))


@pytest.mark.parametrize("module", [ss4rec, mamba4rec, s5rec])
@pytest.mark.parametrize("told", [False, True])
def test_users_followed_event_by_event(module, told):
    model, batch = built(module, TOLD if told else SPEC), example(told=told)
    users, whole = None, replace(batch, targets=batch.targets * 0, targets_count=0)
    with torch.no_grad():
        for k in range(12):
            # Who has no more events hears anything: nobody looks at them any more.
            users = model.hear(users, batch.items[:, k].clamp(min=1), batch.times[:, k])
            shown = replace(
                whole,
                items=batch.items[:, : k + 1],
                times=batch.times[:, : k + 1],
                targets=whole.targets[:, : k + 1],
                lengths=batch.lengths.clamp(max=k + 1),
            )
            there = batch.lengths > k
            found = model.scorer().score(model.vectors(users, batch.request), 1, SPEC.items + 1)
            expected = catalogue_scores(model, shown, SPEC.items)
            torch.testing.assert_close(found[there], expected[there], rtol=1e-4, atol=1e-5)


def test_a_user_with_very_many_events_is_followed_in_as_much_memory():
    model = built()
    users = None
    with torch.no_grad():
        for k in range(50):
            users = model.hear(users, torch.tensor([k % 23 + 1]), torch.tensor([10**9 + k]))
            if k == 3:
                size = sum(
                    t.numel()
                    for seen in users.layers
                    for mixer in seen.mixers
                    for t in (mixer if isinstance(mixer, tuple) else (mixer,))
                )
        assert size == sum(
            t.numel()
            for seen in users.layers
            for mixer in seen.mixers
            for t in (mixer if isinstance(mixer, tuple) else (mixer,))
        )


@pytest.mark.parametrize("item", [0, -1, 24])
def test_what_is_no_item_is_not_heard(item):
    with pytest.raises(ValueError, match="Items are 1 to 23"):
        built().hear(None, torch.tensor([5, item]), torch.tensor([10**9] * 2))


def test_users_are_not_followed_with_dropout():
    model, item = built().train(), torch.tensor([1])
    users = model.hear(None, item, item)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        model.hear(users, item, item)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        model.vectors(users)


def test_one_norm_for_both_mixers_or_one_each():
    assert len(built().layers[0].norms) == 1 and len(built(shared_norm=False).layers[0].norms) == 2
