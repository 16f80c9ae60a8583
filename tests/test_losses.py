import math

import pytest
import torch
import torch.nn.functional as F

from turborec import head
from turborec.contract import Cells
from turborec.head import TiledCrossEntropy
from turborec.losses import BPR, GBCE, Auto, CrossEntropy, Focal, SampledSoftmax, preference

N, V, D = 37, 53, 8


@pytest.fixture(params=[1, 8], autouse=True)
def columns_are_a_multiple_of(request, monkeypatch):
    """As on the processor, and as on an accelerator."""
    monkeypatch.setattr(head, "ALIGNMENT", {"cpu": request.param})


def inputs(dtype=torch.float64, items=V):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(N, D, dtype=dtype, generator=generator).requires_grad_()
    table = torch.randn(items + 1, D, dtype=dtype, generator=generator).requires_grad_()
    return states, table, torch.randint(1, items + 1, (N,), generator=generator)


def gradients(total, states, table):
    return torch.autograd.grad(total, [states, table])


def counts(items=V):
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(1, items + 1)])


@pytest.mark.parametrize("tile", [2**10, 2**14, 2**18, 2**24])
def test_tiled_cross_entropy_equals_the_plain_one_at_any_tile(monkeypatch, tile):
    monkeypatch.setattr(head, "TILE_BYTES", {8: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs()
    total = TiledCrossEntropy.apply(states, table, None, targets)
    plain = F.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")
    assert total.item() == pytest.approx(plain.item(), rel=1e-12)
    for got, expected in zip(gradients(total, states, table), gradients(plain, states, table), strict=True):
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("tile", [2**10, 2**24])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_a_frozen_table_costs_no_gradient_and_may_be_kept_in_less(monkeypatch, tile, kept):
    monkeypatch.setattr(head, "TILE_BYTES", {2: tile, 4: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs(torch.float32)
    frozen = table.detach().to(kept)
    total = TiledCrossEntropy.apply(states, frozen, None, targets)
    plain = F.cross_entropy(states @ frozen[1:].float().T, targets - 1, reduction="sum")
    assert total.dtype == torch.float32 and total.item() == pytest.approx(plain.item(), rel=1e-6)
    got, expected = (torch.autograd.grad(one, states)[0] for one in (total, plain))
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("tile", [2**10, 2**24])
@pytest.mark.parametrize("sure", [0.3, 1.0, 2.0, 4.0])
def test_a_good_prediction_keeps_its_gradient_in_bfloat16(monkeypatch, tile, sure):
    """The better the target is predicted, the less of 1 - p would be left of numbers of eight bits."""
    monkeypatch.setattr(head, "TILE_BYTES", {2: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(200, 64, generator=generator)
    targets = torch.randint(1, 200, (50,), generator=generator)
    states = sure * 0.15 * table[targets] + 0.1 * torch.randn(50, 64, generator=generator)
    found = []
    for dtype, low in ((torch.float64, False), (torch.float32, True)):
        s, t = states.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total = (
                TiledCrossEntropy.apply(s, t, None, targets)
                if low
                else F.cross_entropy(s @ t[1:].T, targets - 1, reduction="sum")
            )
        found.append([total.double(), *(g.double() for g in torch.autograd.grad(total, [s, t]))])
    for exact, got in zip(*found, strict=True):
        assert (got - exact).norm() < 0.05 * exact.norm()


def test_a_target_without_rivals_costs_nothing():
    states, table = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    total = TiledCrossEntropy.apply(1e3 * states, table, None, torch.ones(3, dtype=torch.int64))
    assert total.item() == 0 and not any(g.any() for g in torch.autograd.grad(total, [states, table]))


def focal(logits, targets, gamma):
    """Written from the definition: -(1 - p)^gamma log p."""
    p = logits.softmax(1)[torch.arange(len(targets)), targets]
    return (-((1 - p) ** gamma) * p.log()).sum()


@pytest.mark.parametrize("tile", [2**10, 2**24])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_what_its_definition_says(monkeypatch, tile, gamma):
    monkeypatch.setattr(head, "TILE_BYTES", {8: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs()
    bias = torch.linspace(-1, 1, V + 1, dtype=torch.float64).requires_grad_()
    cells = Cells(torch.tensor([0, 2, 2]), torch.tensor([int(targets[0]), 3, 9]), torch.randn(3, dtype=torch.float64))
    values = cells.values.requires_grad_()
    total = Focal(gamma=gamma).build(counts())(states, table, targets, 0, bias, cells)
    logits = states @ table[1:].T + bias[1:]
    logits = logits.index_put((cells.rows, cells.items - 1), values, accumulate=True)
    plain = focal(logits, targets - 1, gamma)
    assert total.item() == pytest.approx(plain.item(), rel=1e-10)
    wanted = [states, table, bias, values]
    for got, expected in zip(torch.autograd.grad(total, wanted), torch.autograd.grad(plain, wanted), strict=True):
        assert torch.allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_what_is_certain_is_nothing_and_finite(gamma):
    states = torch.full((1, D), 30.0, requires_grad=True)
    table = torch.stack([torch.zeros(D), torch.ones(D), -torch.ones(D)])
    total = Focal(gamma=gamma).build(counts(2))(states, table, torch.tensor([1]), 0)
    total.backward()
    assert total.item() == 0.0 and not states.grad.any()


def test_tiled_cross_entropy_passes_gradcheck():
    states, table, targets = inputs()
    assert torch.autograd.gradcheck(lambda s, t: TiledCrossEntropy.apply(s, t, None, targets), (states, table))


@pytest.mark.parametrize("tile", [2**10, 2**24])
@pytest.mark.parametrize("largest", [2.0, 59.0, 61.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_any_size_are_as_exact_as_their_type_allows(monkeypatch, tile, largest, dtype):
    """Small ones are exponentiated as they are, large ones after their row's largest; a bias counts towards the size."""
    monkeypatch.setattr(head, "TILE_BYTES", {4: tile, 8: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs()
    bias = torch.linspace(-1, 1, V + 1, dtype=torch.float64).requires_grad_()
    scale = (largest - 1) / float((states.norm(dim=1).amax() * table.norm(dim=1).amax()).detach())
    wide = [(states.detach() * scale).requires_grad_(), table, bias]
    plain = F.cross_entropy(wide[0] @ table[1:].T + bias[1:], targets - 1, reduction="sum")
    low = [one.detach().to(dtype).requires_grad_() for one in wide]
    total = TiledCrossEntropy.apply(*low, targets)
    assert head._largest(head.Head(*(one.detach() for one in low))) == pytest.approx(largest, rel=1e-5)
    close = 1e-11 if dtype == torch.float64 else 3e-5
    assert total.item() == pytest.approx(plain.item(), rel=close)
    for got, expected in zip(torch.autograd.grad(total, low), torch.autograd.grad(plain, wide), strict=True):
        assert float((got.double() - expected).norm() / expected.norm()) < close


@pytest.mark.parametrize("tile", [2**10, 2**24])
def test_a_bias_of_the_items_enters_every_logit(monkeypatch, tile):
    monkeypatch.setattr(head, "TILE_BYTES", {8: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs()
    bias = torch.randn(V + 1, dtype=torch.float64).requires_grad_()
    total = TiledCrossEntropy.apply(states, table, bias, targets)
    plain = F.cross_entropy(states @ table[1:].T + bias[1:], targets - 1, reduction="sum")
    assert total.item() == pytest.approx(plain.item(), rel=1e-12)
    got, expected = (torch.autograd.grad(value, [states, table, bias]) for value in (total, plain))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("loss", [CrossEntropy(), SampledSoftmax(), GBCE(), BPR(negatives=3)])
def test_a_bias_is_a_further_column_of_the_table(loss):
    states, table, targets = inputs()
    bias = torch.randn(V + 1, dtype=torch.float64)
    criterion = loss.build(counts())
    wider = torch.cat([states, torch.ones(N, 1, dtype=torch.float64)], 1), torch.cat([table, bias[:, None]], 1)
    assert criterion(states, table, targets, 7, bias).item() == pytest.approx(criterion(*wider, targets, 7).item(), rel=1e-6)


def test_the_gradient_scales_with_what_arrives():
    states, table, targets = inputs()
    once = gradients(TiledCrossEntropy.apply(states, table, None, targets), states, table)
    thrice = gradients(3 * TiledCrossEntropy.apply(states, table, None, targets), states, table)
    assert all(torch.allclose(3 * a, b) for a, b in zip(once, thrice, strict=True))


def test_without_gradients_only_the_value_is_formed():
    states, table, targets = inputs()
    with torch.no_grad():
        total = TiledCrossEntropy.apply(states, table, None, targets)
    assert total.item() == pytest.approx(TiledCrossEntropy.apply(states, table, None, targets).item())


def test_logits_of_ten_thousand_stay_finite():
    states, table, targets = inputs(torch.float32)
    total = TiledCrossEntropy.apply(states * 1e4, table, None, targets)
    assert math.isfinite(total.item())
    assert all(g.isfinite().all() for g in gradients(total, states, table))


def test_float16_products_do_not_overflow_where_float32_ones_would_not():
    """exp(12) is beyond float16: there a row's largest logit is always taken away first."""
    states, table, targets = (one.detach().float() if one.is_floating_point() else one for one in inputs())
    states = (states * 12 / float((states @ table.T).abs().max())).requires_grad_()
    plain = F.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")
    with torch.autocast("cpu", torch.float16):
        total = TiledCrossEntropy.apply(states, table, None, targets)
    assert total.item() == pytest.approx(plain.item(), rel=1e-2)
    (gradient,) = torch.autograd.grad(total, [states])
    assert gradient.isfinite().all()


def test_bfloat16_products_stay_close_to_the_exact_gradient():
    states, table, targets = inputs(torch.float32)
    exact = gradients(TiledCrossEntropy.apply(states.double(), table.double(), None, targets), states, table)
    with torch.autocast("cpu", torch.bfloat16):
        total = TiledCrossEntropy.apply(states, table, None, targets)
    for got, expected in zip(gradients(total, states, table), exact, strict=True):
        assert (got - expected).norm() / expected.norm() < 0.01


def test_no_targets_give_zero():
    states, table, _ = inputs()
    assert TiledCrossEntropy.apply(states[:0], table, None, torch.zeros(0, dtype=torch.int64)).item() == 0


def test_sampling_every_item_once_gives_the_exact_softmax(monkeypatch):
    states, table, targets = inputs()
    criterion = SampledSoftmax(negatives=V).build(counts())
    monkeypatch.setattr(criterion, "draw", lambda size, key: torch.arange(1, V + 1))
    plain = F.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")
    assert criterion(states, table, targets, 0).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_sampled_partition_sum_is_unbiased(power):
    states, table, targets = inputs()
    criterion = SampledSoftmax(negatives=20_000, popularity_power=power).build(counts())
    plain = F.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")
    assert criterion(states, table, targets, 5).item() == pytest.approx(plain.item(), rel=0.02)


def test_gbce_equals_the_paper_in_float64():
    states, table, targets = inputs()
    criterion = GBCE(negatives=9, calibration=0.75).build(counts())
    drawn = criterion.draw(9, 4)
    rate = 9 / (V - 1)
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)
    expected = 0.0
    states, table = states.detach(), table.detach()
    for state, target in zip(states, targets, strict=True):
        expected -= beta * math.log(torch.sigmoid(state @ table[target]))
        expected -= sum(math.log(1 - torch.sigmoid(state @ table[j])) for j in drawn if j != target)
    assert criterion(states, table, targets, 4).item() == pytest.approx(expected, rel=1e-5)


def test_bpr_equals_minus_log_sigmoid_of_the_difference():
    states, table, targets = inputs()
    criterion = BPR(negatives=4).build(counts())
    drawn = criterion.draw(4, 9)
    states, table = states.detach(), table.detach()
    expected = sum(
        -math.log(torch.sigmoid(s @ table[t] - s @ table[j])) / 4
        for s, t in zip(states, targets, strict=True)
        for j in drawn
        if j != t
    )
    assert criterion(states, table, targets, 9).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [SampledSoftmax(), GBCE(), BPR()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampled_losses_are_finite_for_any_difference(loss, dtype):
    states, table, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = loss.build(counts())(states * 1e4, table, targets, 1)
    assert math.isfinite(total.item())
    assert all(g.isfinite().all() for g in gradients(total, states, table))


@pytest.mark.parametrize("loss", [CrossEntropy(), SampledSoftmax(), GBCE(), BPR(negatives=3)])
def test_every_loss_adds_up_over_positions(loss):
    states, table, targets = inputs()
    criterion = loss.build(counts())
    whole = criterion(states, table, targets, 7)
    parts = criterion(states[:11], table, targets[:11], 7) + criterion(states[11:], table, targets[11:], 7)
    assert whole.item() == pytest.approx(parts.item(), rel=1e-6)


def test_negatives_follow_the_stated_distribution_and_the_key():
    criterion = SampledSoftmax(popularity_power=1.0).build(counts())
    drawn = criterion.draw(200_000, 3)
    share = torch.bincount(drawn, minlength=V + 1).double() / len(drawn)
    expected = counts().double() / counts().sum()
    assert torch.equal(drawn, criterion.draw(200_000, 3))
    assert (share - expected).abs().max() < 5 * (expected.max() / len(drawn)) ** 0.5
    assert drawn.min() >= 1


@pytest.mark.parametrize(("items", "kind"), [(9, "cross_entropy"), (10, "cross_entropy"), (11, "sampled_softmax")])
def test_the_automatic_loss_depends_on_the_catalogue_alone_and_says_why(caplog, items, kind):
    with caplog.at_level("INFO", logger="turborec"):
        criterion = Auto(exact_up_to=10, negatives=3).build(torch.ones(items + 1))
    assert criterion.config.kind == kind
    assert f"Loss: {kind}, because the catalogue has {items} items" in caplog.text


def cells(dtype=torch.float64):
    """Half of all logits, in order of their rows, with something to add."""
    generator = torch.Generator().manual_seed(5)
    rows, items = (torch.rand(N, V, generator=generator) < 0.5).nonzero(as_tuple=True)
    values = 3 * torch.randn(len(rows), dtype=dtype, generator=generator)
    return Cells(rows, items + 1, values.requires_grad_())


def with_cells(logits, added):
    """The plain way: a table of all logits."""
    return logits.index_put((added.rows, added.items - 1), added.values, accumulate=True)


@pytest.mark.parametrize("tile", [2**10, 2**14, 2**24])
@pytest.mark.parametrize("largest", [2.0, 500.0])
def test_what_is_added_to_single_logits_enters_the_exact_loss(monkeypatch, tile, largest):
    monkeypatch.setattr(head, "TILE_BYTES", {8: tile})
    monkeypatch.setattr(head, "_MIN_ROWS", 4)
    states, table, targets = inputs()
    states = (states.detach() * largest / 20).requires_grad_()
    added = cells()
    total = CrossEntropy().build(counts())(states, table, targets, 0, cells=added)
    plain = F.cross_entropy(with_cells(states @ table[1:].T, added), targets - 1, reduction="sum")
    assert total.item() == pytest.approx(plain.item(), rel=1e-12)
    given = [states, table, added.values]
    for got, expected in zip(torch.autograd.grad(total, given), torch.autograd.grad(plain, given), strict=True):
        assert torch.allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("loss", [SampledSoftmax(), GBCE(), BPR(negatives=3)])
def test_what_is_added_to_single_logits_enters_sampled_losses(loss):
    """Of as many items as draws, each with a state that picks it out, so that every logit is the item's own number."""
    _, _, targets = inputs()
    added, criterion = cells(), loss.build(counts())
    logits = torch.randn(N, V, dtype=torch.float64)
    table = torch.cat([torch.zeros(1, V, dtype=torch.float64), torch.eye(V, dtype=torch.float64)])
    got = criterion(logits, table, targets, 7, cells=added)
    expected = criterion(with_cells(logits, added), table, targets, 7)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    (a,), (b,) = (torch.autograd.grad(total, [added.values]) for total in (got, expected))
    assert torch.allclose(a, b, atol=1e-6)


def test_cells_of_no_row_add_nothing():
    states, table, targets = inputs()
    none = torch.zeros(0, dtype=torch.int64)
    added = Cells(none, none, torch.zeros(0, dtype=torch.float64).requires_grad_())
    criterion = CrossEntropy().build(counts())
    assert criterion(states, table, targets, 0, cells=added).item() == criterion(states, table, targets, 0).item()


def rows_apart(difference, dtype=torch.float64):
    """Users and items whose scores differ by so much: [B] -> [B, 2] three times."""
    users = torch.ones(len(difference), 2, dtype=dtype)
    liked = torch.stack([difference / 2, difference / 2], 1).to(dtype)
    return users, liked, torch.zeros_like(liked)


def test_a_preference_is_minus_the_log_of_the_sigmoid_in_the_published_form():
    difference = torch.linspace(-80, 80, 4001, dtype=torch.float64)
    users, liked, other = rows_apart(difference)
    scores = torch.stack([(users * liked).sum(1), (users * other).sum(1)], 1)
    published = -torch.log(torch.sigmoid(scores @ torch.tensor([[1.0], [-1.0]], dtype=torch.float64)))[:, 0]
    assert torch.allclose(preference(users, liked, other), published, rtol=1e-6, atol=1e-12)
    low = preference(*(part.float() for part in (users, liked, other)))
    assert low.dtype == torch.float32 and torch.allclose(low.double(), published, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_preference_and_its_gradient_are_finite_at_any_difference(dtype):
    size = torch.logspace(-3, 4, 200, dtype=torch.float64)
    difference = torch.cat([-size, size])
    users, liked, other = (part.requires_grad_() for part in rows_apart(difference, dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        found = preference(users, liked, other)
    gradients = torch.autograd.grad(found.sum(), (users, liked, other))
    assert found.isfinite().all() and all(part.isfinite().all() for part in gradients)
    apart = ((users * liked).double().sum(1)).detach()
    assert torch.allclose(found.double(), torch.nn.functional.softplus(-apart), rtol=2e-2, atol=1e-6)
    wrong = apart < -100
    assert torch.allclose(gradients[1][wrong].double(), -users[wrong].double(), rtol=1e-2)  # nothing of it is lost


def test_the_published_form_is_lost_in_half_precision():
    difference = torch.tensor([-20.0], dtype=torch.float16, requires_grad=True)
    loss = -torch.log(torch.sigmoid(difference))
    (gradient,) = torch.autograd.grad(loss.sum(), difference)
    assert loss.isinf().all() and gradient.isnan().all()
