"""Tiny encoders on the disk, for tests; which skip, with a reason, where the packages that make them are not installed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

CHANNELS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)


def bert_in(place: Path, texts: Iterable[str]) -> Path:
    """A BERT of two layers with random weights, 64 positions and a tokenizer that knows the words of `texts`."""
    transformers = pytest.importorskip("transformers", reason="text: transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for line in texts for word in line.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    transformers.utils.logging.disable_progress_bar()
    wrapped.save_pretrained(place)
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, **layers)
    transformers.BertModel(config).save_pretrained(place)
    return place


def onnx_in(path, shape, last=False, reduce=False, kind=np.float32):
    """An ONNX file whose four channels are red, green, blue and their sum; averaged over space if `reduce`."""
    onnx = pytest.importorskip("onnx", reason="onnx: onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnx: onnxruntime is not installed")
    from onnx import TensorProto, helper, numpy_helper

    element = TensorProto.FLOAT16 if kind is np.float16 else TensorProto.FLOAT
    weight = numpy_helper.from_array(CHANNELS[:, :, None, None].astype(kind), "weight")
    nodes, name = [], "pixels"
    if last:
        nodes.append(helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]))
        name = "first"
    nodes.append(helper.make_node("Conv", [name, "weight"], ["map"]))
    given = helper.make_tensor_value_info("pixels", element, shape)
    outputs = [helper.make_tensor_value_info("map", element, [None] * 4)]
    if reduce:
        nodes.append(helper.make_node("GlobalAveragePool", ["map"], ["mean"]))
        nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
        outputs.insert(0, helper.make_tensor_value_info("flat", element, [None, 4]))
    graph = helper.make_graph(nodes, "tiny", [given], outputs, [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def numbers_file(path):
    """An ONNX file that takes no images."""
    onnx = pytest.importorskip("onnx", reason="onnx: onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnx: onnxruntime is not installed")
    from onnx import TensorProto, helper

    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("pixels", "same"))
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["same"])], "tiny", [given], [found])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
