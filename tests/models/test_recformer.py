"""Histories as texts, by hand; the items' vectors, when they move and when they do not; the loss, by definition."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from turborec.data.batch import DataSpec, ItemTokens, SequenceBatch
from turborec.errors import UserError
from turborec.losses import BPR, GBCE, CrossEntropy, Focal, SampledSoftmax
from turborec.models.recformer import Config, newest_first, tokens_of
from turborec.nn.linear import Context
from turborec.nn.longformer import Tokens
from turborec.nn.masked_words import hide

BEGIN = 9
TEXTS = ItemTokens(
    ids=torch.tensor([10, 11, 12, 20, 21, 30, 31, 32, 33], dtype=torch.int32),
    types=torch.tensor([1, 2, 2, 1, 2, 1, 1, 2, 2], dtype=torch.uint8),
    offsets=torch.tensor([0, 0, 3, 5, 5, 9]),  # items 1, 2 and 4; item 3 has no text
    vocabulary=40,
    begin=BEGIN,
    padding=1,
    mask=2,
)
SPEC = DataSpec(users=3, items=4, max_length=5, texts=TEXTS)
SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 24, "window": 4, "dropout": 0.0}


def texts(found):
    parts = zip(*(part.split(found.lengths.tolist()) for part in (found.ids, found.types, found.item_positions)), strict=True)
    return [tuple(part.tolist() for part in text) for text in parts]


def test_a_history_is_its_newest_item_first_behind_a_token_of_its_own():
    shown = newest_first(torch.tensor([[1, 2, 4, 0], [3, 1, 0, 0]]), torch.tensor([2, 1]))
    assert shown.tolist() == [[4, 2, 1, 0], [1, 3, 0, 0]]
    assert newest_first(torch.tensor([[1, 2, 4, 0]]), torch.tensor([1])).tolist() == [[2, 1, 0, 0]]
    first, second = texts(tokens_of(shown, TEXTS, most=1024))
    assert first[0] == [BEGIN, 30, 31, 32, 33, 20, 21, 10, 11, 12]
    assert first[1] == [0, 1, 1, 2, 2, 1, 2, 1, 2, 2]
    assert first[2] == [0, 1, 1, 1, 1, 2, 2, 3, 3, 3]
    assert second == ([BEGIN, 10, 11, 12], [0, 1, 2, 2], [0, 1, 1, 1])


@pytest.mark.parametrize(("most", "left"), [(10, 10), (7, 7), (6, 6), (2, 2)])
def test_what_is_too_long_loses_its_oldest_words(most, left):
    (found,) = texts(tokens_of(torch.tensor([[4, 2, 1]]), TEXTS, most))
    assert found[0] == [BEGIN, 30, 31, 32, 33, 20, 21, 10, 11, 12][:left]


def test_an_item_without_text_is_the_first_token_alone():
    assert texts(tokens_of(torch.tensor([[3], [0]]), TEXTS, 8)) == [([BEGIN], [0], [0])] * 2


def built(**settings):
    torch.manual_seed(0)
    return Config(**{**SMALL, **settings}).build(SPEC), SequenceBatch.example(SPEC, 6, torch.Generator().manual_seed(1))


def by_definition(model, batch, table, negatives=None):
    total = 0.0
    for row in range(len(batch.items)):
        for at in range(batch.items.shape[1]):
            if target := int(batch.targets[row, at]):
                shown = batch.items[row, : at + 1].flip(0)[None]
                state = model._vectors(tokens_of(shown, TEXTS, 1024), replace_keys())[0]
                logits = table[1:] @ state / model.config.temperature
                total += float(F.cross_entropy(logits[None], torch.tensor([target - 1])))
    return total


def replace_keys():
    from turborec.nn.linear import Context

    return Context(keys=None)


@pytest.mark.parametrize("items", ["kept", "trained"])
def test_the_loss_is_that_of_the_nearest_item_among_all(items):
    model, batch = built(items=items)
    model.eval()
    model.begin_epoch(0, torch.Generator())
    own = torch.cat([model._of_items(torch.tensor([[item]]).flatten()) for item in (1, 2, 3, 4)])
    table = torch.cat([torch.zeros(1, 16), own]).detach()
    with torch.no_grad():
        assert float(model(batch).terms["next_item"].sum) == pytest.approx(by_definition(model, batch, table), rel=1e-5)
        scores = model.scorer()
        assert torch.allclose(scores.items, table, atol=1e-6)


def test_items_stand_still_within_an_epoch_and_where_nothing_is_refreshed():
    model, batch = built()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        model(batch).terms["next_item"].sum.backward()
        optimizer.step()

    model.begin_epoch(0, torch.Generator())
    before = model.table.clone()
    step()
    model.begin_epoch(0, torch.Generator())  # a training that goes on within the epoch
    assert torch.equal(model.table, before)
    again, _ = built()
    again.load_state_dict(model.state_dict())
    again.begin_epoch(0, torch.Generator())
    assert torch.equal(again.table, before)
    model.begin_epoch(1, torch.Generator())
    assert not torch.allclose(model.table[1:], before[1:]) and not model.table[0].any()
    assert torch.allclose(model.table[1:].norm(dim=1), torch.ones(4))
    assert model.table.grad is None


def test_items_are_encoded_as_seldom_as_is_asked_for_and_it_is_told(caplog):
    model, _ = built(refresh_every=2)
    with caplog.at_level("INFO", "turborec"):
        for epoch in range(4):
            model.begin_epoch(epoch, torch.Generator())
    told = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert [("encoded in" in line, "as they were encoded 1 epochs ago" in line) for line in told] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    assert "the cosine to their vectors before is 1.0000" in told[2]


def test_items_that_learn_are_given_gradients_where_they_are_compared():
    model, batch = built(items="trained", loss=SampledSoftmax(negatives=3))
    exact, _ = built(items="trained", loss=CrossEntropy())
    for one in (model, exact):
        one(batch).terms["next_item"].sum.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())
    assert not built()[0].known


def test_words_may_stay_what_they_are():
    model, batch = built(train_words=False)
    model(batch).terms["next_item"].sum.backward()
    assert model.encoder.words.weight.grad is None and model.encoder.types.weight.grad is not None


def test_items_without_text_are_told_of(caplog):
    with caplog.at_level("WARNING", "turborec"):
        built()
    assert "1 of 4 items have no text" in caplog.text


def test_a_batch_without_targets_is_computed_all_the_same():
    model, batch = built()
    empty = replace(batch.rows(0, 1), targets=torch.zeros_like(batch.targets[:1]), targets_count=0)
    term = model(empty).terms["next_item"]
    assert term.count == 0 and float(term.sum.detach()) == 0


def released(positions=1030, width=16, layers=2):
    """A checkpoint as RecFormer's authors name its weights."""
    sizes = {
        "word_embeddings": (40, width),
        "position_embeddings": (positions, width),
        "token_type_embeddings": (4, width),
        "item_position_embeddings": (51, width),
    }
    weights = {f"longformer.embeddings.{name}.weight": torch.randn(shape) for name, shape in sizes.items()}
    maps = {"attention.output.dense": (width, width), "intermediate.dense": (24, width), "output.dense": (width, 24)}
    for part in ("query", "key", "value"):
        maps |= {f"attention.self.{part}{which}": (width, width) for which in ("", "_global")}
    norms = [f"longformer.encoder.layer.{n}.{at}output.LayerNorm" for n in range(layers) for at in ("", "attention.")]
    for name in ["longformer.embeddings.LayerNorm", *norms]:
        weights |= {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}
    for layer in range(layers):
        for name, shape in maps.items():
            at = f"longformer.encoder.layer.{layer}.{name}"
            weights |= {f"{at}.weight": torch.randn(shape), f"{at}.bias": torch.randn(shape[0])}
    return weights


def test_an_encoder_begins_with_the_weights_of_a_checkpoint(tmp_path):
    weights = released()
    torch.save({**weights, "item_embedding.weight": torch.zeros(3, 16)}, tmp_path / "model.bin")
    model, batch = built(norm="post", pretrained=str(tmp_path / "model.bin"))
    model.begin()
    encoder = model.encoder
    assert torch.equal(encoder.words.weight, weights["longformer.embeddings.word_embeddings.weight"])
    assert torch.equal(encoder.positions.weight, weights["longformer.embeddings.position_embeddings.weight"][:1026])
    assert torch.equal(encoder.item_positions.weight, weights["longformer.embeddings.item_position_embeddings.weight"][:6])
    assert torch.equal(
        encoder.blocks[1].attention.q_first.weight, weights["longformer.encoder.layer.1.attention.self.query_global.weight"]
    )
    assert model(batch).terms["next_item"].sum.isfinite()


@pytest.mark.parametrize(
    ("settings", "made", "said"),
    [
        ({"norm": "post", "width": 8}, {}, "has the shape"),
        ({"norm": "post", "layers": 3}, {}, "as many layers as it has"),
        ({"norm": "post", "layers": 1}, {}, "this model has no such layer"),
        ({"norm": "pre"}, {}, "released checkpoints: post"),
        ({"norm": "post", "max_tokens": 1024}, {"positions": 500}, "has the shape"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, settings, made, said):
    torch.save(released(**made), tmp_path / "model.bin")
    model, _ = built(pretrained=str(tmp_path / "model.bin"), **settings)
    with pytest.raises(UserError, match=said):
        model.begin()


def test_a_vector_of_each_item_s_own_is_added_to_its_tokens():
    model, batch = built(ids=True, items="trained", loss=SampledSoftmax(negatives=3))
    plain, _ = built(items="trained", loss=SampledSoftmax(negatives=3))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model.scorer().users(batch).users, plain.scorer().users(batch).users)  # they begin at zero
    loss = model(batch).terms["next_item"].sum
    assert loss.item() == pytest.approx(plain(batch).terms["next_item"].sum.item())
    loss.backward()
    learnt = model.ids.weight.grad.abs().sum(1)
    assert learnt[0] == 0 and learnt[3] == 0 and (learnt[[1, 2, 4]] > 0).all()  # item 3 has no token to add it to
    with torch.no_grad():
        model.ids.weight[2] += 1
    moved = (model.scorer().items - plain.scorer().items).abs().sum(1)
    assert moved[2] > 0 and moved[[1, 3, 4]].eq(0).all()


@pytest.mark.parametrize("items", ["in_batch", "trained"])
@torch.no_grad()
def test_pre_training_compares_with_the_batch_and_names_hidden_words(items):
    model, batch = built(items=items, masked_words={"share": 0.5})
    model.eval()
    terms = model(batch).terms
    assert {name: term.count for name, term in terms.items() if name != "next_item"} == model.counts(batch)
    assert {name: term.weight for name, term in terms.items()} == {"next_item": 1.0, "history_words": 0.1, "item_words": 0.1}
    asked, table = model.asked(batch), model._encode_items()
    if items == "in_batch":
        others = [item for item in range(5) if item not in asked.wanted.tolist()]
        states = model._vectors(
            Tokens(asked.tokens, asked.types, asked.item_positions, asked.token_lengths, asked.longest), Context(None)
        )
        logits = (states @ table.T / model.config.temperature).index_fill(1, torch.tensor(others), -torch.inf)
        expected = F.cross_entropy(logits, asked.wanted, reduction="sum")
    else:
        expected = by_definition(model, batch, table)
    assert float(terms["next_item"].sum) == pytest.approx(float(expected), rel=1e-5)
    for name, hidden, _ in model._hidden(asked, 0.5):
        words = 0.0
        states = model.encoder.states(hidden.tokens, Context(None))
        for where, wanted in zip(hidden.where.tolist(), hidden.wanted.tolist(), strict=True):
            head = model.word_head
            state = head.norm(F.gelu(F.linear(states[where], head.dense.weight, head.dense.bias)))
            logits = model.encoder.words.weight @ state + head.bias
            words += float(logits.logsumexp(0) - logits[wanted])
        assert float(terms[name].sum) == pytest.approx(words, rel=1e-5)


def test_hidden_words_are_a_share_most_of_them_masked_and_a_tenth_as_they_are():
    lengths = torch.tensor([1, 400, 12, 900] * 40)
    nothing = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    tokens = Tokens(nothing + 7, nothing, nothing, lengths, 900)
    hidden = hide(tokens, torch.arange(len(lengths)), site=9, share=0.15, mask=2, vocabulary=40)
    places = tokens.places[hidden.where]
    assert (places > 0).all() and (hidden.wanted == 7).all()
    able = int((tokens.places > 0).sum())
    assert abs(len(hidden.where) / able - 0.15) < 0.01
    shown = hidden.tokens.ids[hidden.where]
    for word, share in ((2, 0.8), (7, 0.1)):
        assert abs((shown == word).float().mean() - (share + 0.1 / 40)) < 0.02
    assert set(shown.tolist()) == set(range(40))
    unseen = torch.ones(len(tokens.ids), dtype=torch.bool).index_fill(0, hidden.where, False)
    assert (hidden.tokens.ids[unseen] == 7).all()
    # A text's own words are hidden wherever it stands.
    second = Tokens(tokens.ids[1:401], *[torch.zeros(400, dtype=torch.int64)] * 2, torch.tensor([400]), 400)
    alone = hide(second, torch.tensor([1]), site=9, share=0.15, mask=2, vocabulary=40)
    assert torch.equal(alone.tokens.ids, hidden.tokens.ids[1:401])


def test_all_of_a_pre_trained_model_is_given_gradients_and_a_batch_without_targets_is_none():
    model, batch = built(items="in_batch", masked_words={"share": 0.5})
    loss = sum(term.weight * term.sum for term in model(batch).terms.values())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    terms = model(batch.nothing()).terms
    assert [term.sum.item() for term in terms.values()] == [0.0] * 3 and terms["item_words"].count == 0


def test_the_batch_s_items_need_an_exact_loss():
    with pytest.raises(ValueError, match="in_batch compares with the items of the batch"):
        Config(items="in_batch", loss=SampledSoftmax())


def test_items_that_are_made_as_they_are_asked_for_have_the_loss_of_the_whole_table():
    torch.manual_seed(0)
    states, table, targets = torch.randn(7, 8), torch.randn(501, 8), torch.randint(1, 501, (7,))
    for loss in (CrossEntropy(), Focal(), SampledSoftmax(negatives=32), GBCE(negatives=32), BPR(negatives=4)):
        criterion = loss.build(torch.ones(501))
        whole = criterion(states, table, targets, 77)
        torch.testing.assert_close(criterion.of_rows(states, lambda rows: table[rows], targets, 77), whole)


def test_a_batch_whose_items_are_compared_is_not_taken_apart():
    assert built(items="trained")[0].divisible and not built(items="in_batch")[0].divisible
