"""Released forms of RecFormer's checkpoints, and Hugging Face's Longformer on random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from turborec.bridges.recformer import encoder_of
from turborec.errors import UserError
from turborec.features.pretrained import found_in
from turborec.nn.linear import Context
from turborec.nn.longformer import TextEncoder, TextShape, Tokens

ORIGIN = Path("model.bin")
LAYERS, WIDTH, HIDDEN = 2, 8, 12


def theirs(plain=False):
    """The names and shapes of the released encoder, at a small size."""
    torch.manual_seed(0)
    sizes = {
        "embeddings.word_embeddings.weight": (30, WIDTH),
        "embeddings.position_embeddings.weight": (40, WIDTH),
        "embeddings.token_type_embeddings.weight": (1 if plain else 4, WIDTH),
        **({} if plain else {"embeddings.item_position_embeddings.weight": (6, WIDTH)}),
        **{f"embeddings.LayerNorm.{kind}": (WIDTH,) for kind in ("weight", "bias")},
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        maps = {
            f"{at}.attention.self.{part}{which}": (WIDTH, WIDTH)
            for part in ("query", "key", "value")
            for which in ("", "_global")
        }
        maps |= {f"{at}.attention.output.dense": (WIDTH, WIDTH), f"{at}.intermediate.dense": (HIDDEN, WIDTH)}
        maps |= {f"{at}.output.dense": (WIDTH, HIDDEN)}
        for name, shape in maps.items():
            sizes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in (f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"):
            sizes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    return {name: torch.randn(shape) for name, shape in sizes.items()}


def model_of(found):
    shape = found.shape()
    model = TextEncoder(TextShape(**shape, types=4, item_positions=6, heads=2, window=4, dropout=0.1, every_state=True)).eval()
    model.load_state_dict(found.weights, strict=not found.plain)
    return model


FORMS = {
    "an encoder alone": lambda weights: weights,
    "of a sequence model": lambda weights: {f"longformer.{name}": one for name, one in weights.items()},
    "fine-tuned": lambda weights: {
        **{f"longformer.{name}": one for name, one in weights.items()},
        "item_embedding.weight": torch.zeros(5, WIDTH),
    },
    "pre-trained": lambda weights: {
        **{f"longformer.{name}": one for name, one in weights.items()},
        **{f"lm_head.{name}": torch.zeros(3) for name in ("dense.weight", "layer_norm.bias", "decoder.weight", "bias")},
        "longformer.embeddings.position_ids": torch.arange(40),
    },
    "of Lightning and DeepSpeed": lambda weights: {
        "epoch": 3,
        "state_dict": {
            **{f"_forward_module.model.longformer.{name}": one for name, one in weights.items()},
            "_forward_module.model.lm_head.bias": torch.zeros(3),
        },
    },
    "half precision": lambda weights: {name: one.half() for name, one in weights.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_released_form_is_the_same_encoder(form):
    weights = theirs()
    found = encoder_of(FORMS[form](weights), ORIGIN)
    assert found.shape() == {"vocabulary": 30, "positions": 40, "width": WIDTH, "layers": LAYERS, "hidden": HIDDEN}
    assert not found.plain and model_of(found)
    expected = encoder_of(weights, ORIGIN).weights
    tolerance = 1e-3 if form == "half precision" else 0
    for name, one in expected.items():
        torch.testing.assert_close(found.weights[name], one, rtol=tolerance, atol=tolerance)


def test_a_plain_longformer_begins_all_types_as_its_one():
    found = encoder_of(theirs(plain=True), ORIGIN)
    assert found.plain and "item_positions.weight" not in found.weights
    assert found.weights["types.weight"].shape == (4, WIDTH) and (found.weights["types.weight"].diff(dim=0) == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: w.pop("encoder.layer.1.attention.self.key_global.bias"),
            "lack encoder.layer.1.attention.self.key_global.bias",
        ),
        (lambda w: w.update({"encoder.layer.0.crossattention.weight": torch.zeros(2)}), "crossattention"),
        (lambda w: w.update({"model.embeddings.word_embeddings.weight": torch.zeros(2)}), "expected one weight"),
        (lambda w: w.pop("embeddings.word_embeddings.weight"), "expected one weight called"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("encoder")], "has no layers"),
    ],
)
def test_what_is_not_whole_or_strange_is_refused(change, said):
    weights = theirs()
    change(weights)
    with pytest.raises(UserError, match=said):
        encoder_of(weights, ORIGIN)


def bert():
    """A BERT's names: two types, positions from 0 on, nothing of its own for the first token."""
    weights = {name: one for name, one in theirs(plain=True).items() if "_global" not in name}
    weights["embeddings.token_type_embeddings.weight"] = torch.randn(2, WIDTH)
    return weights | {"pooler.dense.weight": torch.zeros(WIDTH, WIDTH), "pooler.dense.bias": torch.zeros(WIDTH)}


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_bert_s_first_token_is_projected_as_all_others(prefix):
    weights = {f"{prefix}{name}": one for name, one in bert().items()} | {"cls.predictions.bias": torch.zeros(30)}
    found = encoder_of(weights, ORIGIN)
    assert found.plain and found.shape()["positions"] == 42 and found.weights["positions.weight"][:2].eq(0).all()
    assert (found.weights["types.weight"] == weights[f"{prefix}embeddings.token_type_embeddings.weight"][0]).all()
    for part in ("q.weight", "q.bias", "k.weight", "v.weight", "v.bias"):
        name, kind = part.split(".")
        at = "blocks.1.attention"
        assert torch.equal(found.weights[f"{at}.{name}_first.{kind}"], found.weights[f"{at}.{name}.{kind}"])
    model_of(found)


def test_encoders_are_found_in_files_and_folders(tmp_path):
    weights = bert()
    save_file(weights, tmp_path / "model.safetensors")
    for name in (tmp_path, tmp_path / "model.safetensors"):
        state, path = found_in(str(name))
        assert path == tmp_path / "model.safetensors" and state.keys() == weights.keys()
    (tmp_path / "model.safetensors").rename(tmp_path / "weights")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert found_in(str(tmp_path))[0].keys() == weights.keys()
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as weights in safetensors"):
        found_in(str(tmp_path / "broken.safetensors"))
    with pytest.raises(UserError, match="there is no "):
        found_in(str(tmp_path / "nowhere.bin"))


def test_what_is_no_checkpoint_is_refused():
    with pytest.raises(UserError, match="expected weights by name, got list"):
        encoder_of([1], ORIGIN)


@pytest.mark.parametrize("dense", [256, 0])
def test_the_encoder_is_hugging_faces_longformer(dense, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="text: transformers is not installed")
    monkeypatch.setattr("turborec.nn.longformer.DENSE", dense)
    config = transformers.LongformerConfig(
        **{"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        **{"max_position_embeddings": 200, "attention_window": [8, 8], "pad_token_id": 1, "type_vocab_size": 1},
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    other = transformers.LongformerModel(config).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lengths = [90, 33, 8, 1]
    ids = torch.randint(2, 60, (4, 90))
    mask = torch.arange(90) < torch.tensor(lengths)[:, None]
    everywhere = torch.zeros_like(ids)
    everywhere[:, 0] = 1
    with torch.no_grad():
        expected = other(
            input_ids=ids.masked_fill(~mask, 1), attention_mask=mask.long(), global_attention_mask=everywhere
        ).last_hidden_state
    found = encoder_of(other.state_dict(), ORIGIN)
    shape = TextShape(**found.shape(), types=4, item_positions=6, heads=3, window=8, dropout=0.1)
    model, whole = (TextEncoder(replace(shape, every_state=every)).eval() for every in (False, True))
    for one in (model, whole):
        known = one.state_dict()
        one.load_state_dict({**known, **{name: value for name, value in found.weights.items() if name in known}})
        torch.nn.init.zeros_(one.item_positions.weight)
    nothing = torch.zeros(sum(lengths), dtype=torch.int64)
    tokens = Tokens(ids[mask], nothing, nothing, torch.tensor(lengths), longest=90)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, Context(None)), expected[:, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(whole.states(tokens, Context(None)), expected[mask], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_the_encoder_is_hugging_faces_bert(kind):
    transformers = pytest.importorskip("transformers", reason="text: transformers is not installed")
    roberta = kind == "Roberta"
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        **{"max_position_embeddings": 100, "pad_token_id": 1 if roberta else 0, "type_vocab_size": 1 if roberta else 2},
        layer_norm_eps=1e-12,
    )
    torch.manual_seed(0)
    other = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lengths = [90, 33, 8, 1]
    ids = torch.randint(2, 60, (4, 90))
    mask = torch.arange(90) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        expected = other(input_ids=ids.masked_fill(~mask, config.pad_token_id), attention_mask=mask.long()).last_hidden_state
    found = encoder_of(other.state_dict(), ORIGIN)
    shape = TextShape(**found.shape(), types=4, item_positions=6, heads=3, window=256, dropout=0.1, norm_eps=1e-12)
    nothing = torch.zeros(sum(lengths), dtype=torch.int64)
    tokens = Tokens(ids[mask], nothing, nothing, torch.tensor(lengths), longest=90)
    means = torch.stack([row[there].mean(0) for row, there in zip(expected, mask, strict=True)])
    for pooling, wanted in (("first", expected[:, 0]), ("mean", means)):
        one = TextEncoder(replace(shape, pooling=pooling)).eval()
        known = one.state_dict()
        one.load_state_dict({**known, **{name: value for name, value in found.weights.items() if name in known}})
        torch.nn.init.zeros_(one.item_positions.weight)
        with torch.no_grad():
            torch.testing.assert_close(one(tokens, Context(None)), wanted, rtol=0, atol=1e-4)
