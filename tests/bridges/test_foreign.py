"""What is not known of a checkpoint is refused by name, and ids of items are read in the forms that numpy gives them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from turborec.bridges import recbole, rectools, replay
from turborec.bridges.foreign import member, texts
from turborec.bridges.pickled import read
from turborec.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"


@pytest.mark.parametrize(
    "ids",
    [
        *(np.arange(-1, 3), np.arange(3, dtype=np.uint16), np.array(["a", "bcd", "ä"]), np.arange(3, dtype=">i4")),
        *(np.array(["PAD", 1, np.int64(7), np.str_("x")], dtype=object), ["PAD", 2], np.array([], dtype=np.int64)),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_ids_in_the_forms_of_numpy(tmp_path, ids, protocol):
    torch.save({"ids": ids}, tmp_path / "c.pt", pickle_protocol=protocol)
    assert texts(read(tmp_path / "c.pt")["ids"], tmp_path) == [str(value) for value in ids]


@pytest.mark.parametrize(
    "ids", [np.array([1.5]), np.array([None]), np.arange(4).reshape(2, 2), np.array([b"a"]), 3, np.datetime64(0, "s"), [1.0]]
)
def test_ids_in_other_forms_are_refused(tmp_path, ids):
    torch.save({"ids": ids}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="cannot be imported"):
        texts(read(tmp_path / "c.pt")["ids"], tmp_path)


def told(bridge, checkpoint):
    with pytest.raises(UserError) as caught:
        bridge.convert(checkpoint, Path("theirs.ckpt"))
    assert "theirs.ckpt" in str(caught.value)
    return str(caught.value)


def test_other_settings_are_refused_by_name():
    checkpoint = read(FIXTURES / "rectools-sasrec.ckpt")
    settings = checkpoint["hyper_parameters"]["model_config"]
    for name, value in (
        ("transformer_layers_type", "rectools.models.nn.transformers.ligr.LiGRLayers"),
        ("similarity_module_kwargs", {"distance": "cosine"}),
        ("pos_encoding_kwargs", {"use_scale_factor": True}),
        ("use_causal_attn", False),
        ("n_heads", 2.5),
        ("session_max_len", 0),
    ):
        before, settings[name] = settings[name], value
        assert name in told(rectools, checkpoint)
        settings[name] = before
    rectools.convert(checkpoint, Path("theirs.ckpt"))


def endless():
    """Nested 2 ** 60 times over, in 60 lists."""
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value", [endless(), {"a": endless()}, 10**10_000, float("nan"), -1.0, None], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(
    ("bridge", "file", "place", "names"),
    [
        (recbole, "recbole-sasrec.pth", ("config", "final_config_dict"), ("hidden_act", "hidden_dropout_prob", "n_heads")),
        (rectools, "rectools-sasrec.ckpt", ("hyper_parameters", "model_config"), ("cls", "dropout_rate", "session_max_len")),
    ],
)
def test_settings_of_any_size_and_kind_are_refused_at_once(bridge, file, place, names, value):
    checkpoint = read(FIXTURES / file)
    settings = member(checkpoint, Path("theirs.ckpt"), *place)
    for name in names:
        before, settings[name] = settings[name], value
        assert len(told(bridge, checkpoint)) < 600
        settings[name] = before


def test_a_file_does_not_ask_for_more_memory_than_it_holds():
    checkpoint = read(FIXTURES / "rectools-sasrec.ckpt")
    checkpoint["hyper_parameters"]["model_config"] |= {"use_pos_emb": False, "session_max_len": 10**6}
    state = checkpoint["state_dict"]
    rows = state["torch_model.item_model.item_net_blocks.0.ids_emb.weight"]
    state["torch_model.item_model.item_net_blocks.0.ids_emb.weight"] = torch.zeros(len(rows), 300)
    assert "more than any model's" in told(rectools, checkpoint)
    checkpoint = read(FIXTURES / "recbole-sasrec.pth")
    state = checkpoint["state_dict"]
    for name in list(state):
        if name.startswith("trm_encoder"):
            state[name] = state["LayerNorm.weight"][:1].expand(100_000)
    assert "views of one another" in told(recbole, checkpoint)


def test_no_weight_is_left_out_or_made_up():
    checkpoint = read(FIXTURES / "rectools-sasrec.ckpt")
    checkpoint["state_dict"]["torch_model.item_model.item_net_blocks.1.embedding_bag.weight"] = torch.ones(3, 8)
    assert "item_net_blocks.1.embedding_bag.weight" in told(rectools, checkpoint)
    checkpoint = read(FIXTURES / "recbole-bert4rec.pth")
    del checkpoint["state_dict"]["output_bias"]
    assert "lack output_bias" in told(recbole, checkpoint)
    checkpoint = read(FIXTURES / "replay-sasrec.ckpt")
    checkpoint["state_dict"]["model.body.embedder.feature_embedders.genre.emb.weight"] = torch.ones(3, 8)
    assert "2 features" in told(replay, checkpoint)
    assert "neither" in told(replay, {"state_dict": {}})
    assert "lacks state_dict" in told(replay, ["anything"])


def test_the_other_names_of_replay_s_weights():
    checkpoint = read(FIXTURES / "replay-sasrec.ckpt")
    plain = replay.convert(checkpoint, Path("theirs.ckpt"))
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name.replace(".encoder.", ".encoder.encoder."): tensor for name, tensor in state.items()}
    wrapped = replay.convert(checkpoint, Path("theirs.ckpt"))
    assert all(torch.equal(tensor, wrapped.weights[name]) for name, tensor in plain.weights.items())
