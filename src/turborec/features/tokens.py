"""What a store tells of its items, cut once into tokens, and kept by content.

An item is its attributes in order, each as its name and its text, without separators (RecFormer, Li et al., KDD 2023, arXiv
2305.13731, section 2.1). Tokens are cut by the library `tokenizers` (extra `text`), which no other file imports.

Letters: V items, T tokens of all of them.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file, save_file

from turborec.data import attributes
from turborec.data.batch import ItemTokens
from turborec.data.store import Store
from turborec.errors import UserError, closest
from turborec.features.plain import plain
from turborec.files import from_anywhere, sync
from turborec.nn.text import minilm, on_hub
from turborec.progress import task
from turborec.recipe import Config

logger = logging.getLogger("turborec")

VERSION = 1
"""Of what is done here; tokens of another are not found."""

BATCH = 4096
"""Texts that are cut together."""

LONG = 4000
"""Characters of a text that are looked at first: where they hold as many tokens as are wanted, nothing behind them matters."""

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Of a tokenizer that is trained here, in the order of RoBERTa's numbers."""

ALIASES = {"begin": ("<s>", "[CLS]"), "padding": ("<pad>", "[PAD]"), "mask": ("<mask>", "[MASK]")}
"""What tokenizers call them."""


class Texts(Config):
    """What of the items is read, and how it is cut into tokens."""

    attributes: tuple[str, ...] | None = Field(
        None, min_length=1, description="what is read of an item, in this order; null: the first ones that the store has"
    )
    max_attributes: int = Field(3, ge=1, description="of an item: those that it has, the first ones")
    max_attribute_tokens: int = Field(32, ge=1, description="of an attribute, its name among them")
    tokenizer: str = Field(
        "trained",
        min_length=1,
        description="trained: from these texts; minilm; a tokenizer.json, its folder, such as a run's, or a name on the hub",
    )
    vocabulary: int = Field(8000, ge=300, le=2**31, description="tokens of a tokenizer that is trained")

    @field_validator("tokenizer")
    @classmethod
    def _tokenizer_is_found_from_anywhere(cls, tokenizer: str) -> str:
        return tokenizer if tokenizer in ("trained", "minilm") else from_anywhere(tokenizer)


def tokens_of(store: Store, config: Texts, home: Path | None) -> ItemTokens:
    """The tokens of the store's items, kept below `home` where there is one. A UserError where there is nothing to read."""
    names = _chosen(store, config)
    given = None if config.tokenizer == "trained" else _named(config.tokenizer)
    told = {
        "version": VERSION,
        "texts": {name: fact["sha256"] for name, fact in store.card["files"].items() if name.startswith("items.parquet")},
        "attributes": names,
        "config": config.model_dump(mode="json", exclude={"tokenizer", "attributes"}),
        "tokenizer": "trained" if given is None else hashlib.sha256(given.to_str().encode()).hexdigest(),
        "library": _library(),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    folder = None if home is None else home / "tokens" / key
    if folder is None or not folder.is_dir():
        tokenizer = given or _trained(store, names, config)
        arrays = _cut(store, names, config, tokenizer)
        if folder is None:
            return _described(arrays, tokenizer)
        _keep(folder, arrays, tokenizer, told)
    from tokenizers import Tokenizer

    return _described(load_file(folder / "tokens.safetensors"), Tokenizer.from_file(str(folder / "tokenizer.json")))


def lacking(tokens: ItemTokens) -> int:
    """How many items have no token at all."""
    return int((tokens.offsets[2:] == tokens.offsets[1:-1]).sum())


def _chosen(store: Store, config: Texts) -> list[str]:
    known = attributes.columns(store)
    if not known:
        raise UserError(f"The store {store.folder} tells nothing of its items: a model of texts needs a source that has some.")
    wanted = known[: config.max_attributes] if config.attributes is None else list(config.attributes)
    for name in wanted:
        if name not in known:
            raise UserError(f"model.texts.attributes: the items have no {name!r}{closest(name, known)}.")
    return wanted


def _texts(store: Store, name: str) -> list[str]:
    """An attribute of every item as it would be read, '' where nobody tells it; lists, kept with `|`, become sentences."""
    return ["" if text is None else plain(text.replace("|", " ")) for text in attributes.texts(store, name)]


def _trained(store: Store, names: Sequence[str], config: Texts) -> Any:
    """Byte pairs (Sennrich et al., ACL 2016, arXiv 1508.07909) of these texts; any text can be cut by them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def read() -> Iterator[str]:
        with task("Reading texts for a tokenizer", len(names) * store.num_items, "texts") as advance:
            for name in names:
                yield name
                for text in _texts(store, name):
                    advance(1)
                    yield text[:LONG]

    tokenizer.train_from_iterator(read(), trainer)
    return tokenizer


def _named(name: str) -> Any:
    """The tokenizer in a file, in a folder, or on the hub."""
    _require()
    from tokenizers import Tokenizer

    path = minilm() if name == "minilm" else Path(name).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        if not path.is_file() and "/" in name and not on_hub(name):
            raise FileNotFoundError(f"there is no file {path}")
        return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises nothing more particular
        raise UserError(
            f"model.texts.tokenizer: {name!r} is no tokenizer: expected trained, minilm, a tokenizer.json, a folder with "
            f"one, or a name on the Hugging Face hub ({' '.join(str(error).split())[:200]})."
        ) from error


def _cut(store: Store, names: Sequence[str], config: Texts, tokenizer: Any) -> dict[str, torch.Tensor]:
    """All items, an attribute at a time; then each item's attributes one after the other."""
    items, most = store.num_items, config.max_attribute_tokens
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = np.zeros((items, len(names), most), np.int32)
    lengths, keys = np.zeros((items, len(names)), np.int64), np.zeros(len(names), np.int64)
    with task("Cutting texts into tokens", len(names) * items, "texts") as advance:
        for column, name in enumerate(names):
            head = tokenizer.encode(name, add_special_tokens=False).ids[:most]
            keys[column] = len(head)
            texts = _texts(store, name)
            for at in range(0, items, BATCH):
                some = texts[at : at + BATCH]
                for row, ids in enumerate(_encoded(some, most - len(head), tokenizer), at):
                    if ids:
                        whole = [*head, *ids]
                        found[row, column, : len(whole)], lengths[row, column] = whole, len(whole)
                advance(len(some))
    # Of an item those attributes that it has, the first so many.
    lengths[np.cumsum(lengths > 0, axis=1) > config.max_attributes] = 0
    place = np.arange(most)
    real = place < lengths[:, :, None]
    types = np.where(place < keys[:, None], 1, 2)
    offsets = np.concatenate([[0, 0], np.cumsum(lengths.sum(1))])
    return {
        "ids": torch.from_numpy(found[real]),
        "types": torch.from_numpy(np.broadcast_to(types, real.shape)[real].astype(np.uint8)),
        "offsets": torch.from_numpy(offsets),
    }


def _encoded(texts: Sequence[str], most: int, tokenizer: Any) -> Iterator[list[int]]:
    """The first `most` tokens of each text."""
    for text, found in zip(
        texts, tokenizer.encode_batch_fast([t[:LONG] for t in texts], add_special_tokens=False), strict=True
    ):
        ids: list[int] = found.ids
        if len(ids) <= most and len(text) > LONG:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        yield ids[:most]


def _keep(folder: Path, arrays: dict[str, torch.Tensor], tokenizer: Any, told: dict[str, Any]) -> None:
    """Write a folder that is whole or not there; of several processes the first one's stays."""
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        building.mkdir(parents=True)
        save_file(arrays, building / "tokens.safetensors")
        tokenizer.save(str(building / "tokenizer.json"))
        (building / "told.json").write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")
        for path in building.iterdir():
            sync(path)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise UserError(
            f"The tokens of the items cannot be kept in {folder.parent}: {error.strerror}. Name another --home."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _described(arrays: dict[str, torch.Tensor], tokenizer: Any) -> ItemTokens:
    begin, padding, mask = (_number(tokenizer, role) for role in ("begin", "padding", "mask"))
    if begin is None or padding is None:
        names = " or ".join(ALIASES["begin" if begin is None else "padding"])
        raise UserError(f"model.texts.tokenizer has no {names}: a model of texts needs one.")
    words = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())  # of numbers, some of which may be no word's
    told = tokenizer.to_str()
    return ItemTokens(arrays["ids"], arrays["types"], arrays["offsets"], words, begin, padding, mask, told)


def _number(tokenizer: Any, role: str) -> int | None:
    """The number of the token that has a role, where there is one."""
    return next((number for name in ALIASES[role] if (number := tokenizer.token_to_id(name)) is not None), None)


def require_same_words(folder: Path, tokenizer: str) -> None:
    """Compare a tokenizer.json with the one beside a checkpoint in `folder`, if any: a UserError where they cut otherwise."""
    beside = folder / "tokenizer.json"
    if not tokenizer or not beside.is_file():
        return
    theirs, ours = (json.loads(text) for text in (_named(str(beside)).to_str(), tokenizer))
    if any(theirs.get(part) != ours.get(part) for part in ("model", "normalizer", "pre_tokenizer")):
        raise UserError(f"{folder} was trained with the words of its tokenizer.json: set model.texts.tokenizer to {folder}.")


def _library() -> str:
    _require()
    import tokenizers

    return str(tokenizers.__version__)


def _require() -> None:
    if find_spec("tokenizers") is None:
        raise UserError("A model of texts needs the package tokenizers: pip install 'turborec[text]'.")
