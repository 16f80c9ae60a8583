"""Items as tokens, against cutting each text by itself; and what is kept of them."""

import pytest
import torch

from stores import store_of
from turborec.data.batch import DataSpec
from turborec.errors import UserError
from turborec.features import tokens
from turborec.features.tokens import Texts, lacking, tokens_of
from turborec.models import recformer
from turborec.nn.masked_words import MaskedWords

pytest.importorskip("tokenizers", reason="text: tokenizers is not installed")

TITLES = [
    "Red shirt",
    "A blue <b>shirt</b> &amp; tie",
    None,
    "Рубашка красная 红衬衫",
    "word " * 30_000,
    "",
    "knife\x00 sharp",
    "x",
]
BRANDS = ["Acme", None, None, "Acme|Other", "Acme", "", None, "y" * 9000]
COLOURS = ["red", "blue", None, "red", None, "green", "steel", "z"]
TOLD = {"title": TITLES, "brand": BRANDS, "colour": COLOURS}
SMALL = Texts(vocabulary=400)


def store_in(folder, told=TOLD):
    return store_of(folder, [[1, 2, 3, 4, 5, 6, 7, 8]], items=8, told=told)


def of_item(found, item):
    span = slice(int(found.offsets[item]), int(found.offsets[item + 1]))
    return found.ids[span].tolist(), found.types[span].tolist()


def by_itself(home, item, names=("title", "brand", "colour"), most=32, attributes=3):
    """An item's tokens and types, each text cut alone and whole."""
    from tokenizers import Tokenizer

    from turborec.features.plain import plain

    tokenizer = Tokenizer.from_file(str(next((home / "tokens").glob("*/tokenizer.json"))))
    ids, types, had = [], [], 0
    for name in names:
        text = plain((TOLD[name][item - 1] or "").replace("|", " "))
        value = tokenizer.encode(text, add_special_tokens=False).ids
        if not value or had == attributes:
            continue
        key = tokenizer.encode(name, add_special_tokens=False).ids
        had += 1
        ids += [*key, *value][:most]
        types += ([1] * len(key) + [2] * len(value))[:most]
    return ids, types


@pytest.mark.parametrize(("most", "attributes"), [(32, 3), (5, 2), (2, 1)])
def test_every_item_is_its_attributes_in_order_and_none_moves_another(tmp_path, most, attributes):
    config = SMALL.model_copy(update={"max_attribute_tokens": most, "max_attributes": attributes})
    config = config.model_copy(update={"attributes": ("title", "brand", "colour")})
    found = tokens_of(store_in(tmp_path / "store"), config, tmp_path)
    assert found.offsets[1] == 0 and len(found.offsets) == 10
    for item in range(1, 9):
        assert of_item(found, item) == by_itself(tmp_path, item, most=most, attributes=attributes), item
    assert of_item(found, 3) == ([], []) and lacking(found) == 1
    assert 300 < found.vocabulary <= 400 and (found.begin, found.padding, found.mask) == (0, 1, 4)


def test_what_was_cut_before_is_found_and_anything_else_is_not(tmp_path, monkeypatch):
    store = store_in(tmp_path / "store")
    first = tokens_of(store, SMALL, tmp_path)
    monkeypatch.setattr(tokens, "_cut", lambda *_: pytest.fail("cut again"))
    again = tokens_of(store, SMALL, tmp_path)
    assert again.ids.equal(first.ids) and again.offsets.equal(first.offsets) and again.types.equal(first.types)
    with pytest.raises(pytest.fail.Exception):
        tokens_of(store, SMALL.model_copy(update={"max_attributes": 2}), tmp_path)
    with pytest.raises(pytest.fail.Exception):
        tokens_of(store_in(tmp_path / "other", {**TOLD, "title": ["other", *TITLES[1:]]}), SMALL, tmp_path)
    monkeypatch.undo()
    unkept = tokens_of(store, SMALL, None)
    assert unkept.ids.equal(first.ids)  # the same tokenizer is trained anew, whatever threads do


def test_a_tokenizer_of_one_s_own_is_taken_as_it_is(tmp_path):
    store = store_in(tmp_path / "store")
    first = tokens_of(store, SMALL, tmp_path)
    folder = next((tmp_path / "tokens").iterdir())
    own = tokens_of(store, SMALL.model_copy(update={"tokenizer": str(folder)}), tmp_path)
    assert own.ids.equal(first.ids)
    with pytest.raises(UserError, match="is no tokenizer: expected trained"):
        tokens_of(store, SMALL.model_copy(update={"tokenizer": str(tmp_path / "nothing.json")}), tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="tells nothing of its items"):
        tokens_of(store_of(tmp_path / "bare", [[1, 2, 3]]), SMALL, None)
    with pytest.raises(UserError, match=r"the items have no 'titel' \(did you mean 'title'"):
        tokens_of(store_in(tmp_path / "store"), SMALL.model_copy(update={"attributes": ("titel",)}), None)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'turborec\[text\]'"):
        tokens_of(store_in(tmp_path / "store"), SMALL, None)


def test_numbers_of_words_may_have_gaps_and_no_mask_is_needed_before_words_are_hidden(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<s>": 0, "<pad>": 1, "<unk>": 3, "title": 9, "A": 12, "blue": 30}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "gaps.json"))
    config = SMALL.model_copy(update={"tokenizer": str(tmp_path / "gaps.json")})
    store = store_in(tmp_path / "store")
    found = tokens_of(store, config, tmp_path)
    assert found.vocabulary == 31 and found.mask is None and found.ids.max() < 31
    model = recformer.Config(width=8, heads=1, layers=1, hidden=8, texts=config)
    spec = DataSpec(users=1, items=8, max_length=8, texts=found)
    assert torch.isfinite(model.build(spec).encoded_of(torch.arange(1, 9))).all()
    with pytest.raises(UserError, match="no <mask> or"):
        model.model_copy(update={"masked_words": MaskedWords()}).build(spec)
