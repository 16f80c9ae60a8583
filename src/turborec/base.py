"""What a run begins with: the weights of another run, its items matched by their raw ids, and adapters beside them.

Letters: V items of this run's store, W of the other's.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turborec import stores
from turborec.contract import Counted, Model
from turborec.data.batch import SequenceBatch
from turborec.data.store import Store, open_store
from turborec.engine import checkpoint, log
from turborec.engine.sharding import load_whole
from turborec.errors import UserError
from turborec.features.tokens import require_same_words
from turborec.models._gate import Gate
from turborec.nn.lora import ILoRA, adapt
from turborec.recipe import read
from turborec.recipes import AnyRecipe, from_tree

UNKNOWN = 0.5
"""Share of a store's items that the other run may not know before it is held to be of other data."""


@dataclass(frozen=True)
class Weights:
    """What a finished run has learnt, as validation chose it."""

    folder: Path
    recipe: AnyRecipe
    store: Store
    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the names and numbers: what tells one base from another."""
        whole = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return whole.digest()


def weights_of(folder: Path, key: str = "base") -> Weights:
    """The weights of a run that validation chose, averaged ones where there are. A UserError where it has none to give."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(
            f"{key}: {folder} is not a run folder: it has no recipe.yaml. Expected the folder of a finished run; where this "
            "was one, it has been moved, and adapters need it where it was when they were trained (or `turborec merge` before)."
        )
    recipe = from_tree(read(path), str(path))
    if recipe.adapters is not None:
        raise UserError(f"{key}: {folder} holds adapters and no whole model. `turborec merge {folder}` makes one of it.")
    if (state := log.state_of(folder)) not in (None, "finished"):
        raise UserError(
            f"{key}: the run in {folder} is {state}, and its best weights may still change: `turborec train --resume {folder}` "
            "ends it."
        )
    chosen = checkpoint.load_chosen(folder / "checkpoints")
    if chosen is None:
        raise UserError(f"{key}: {folder} has no validated weights: it must be a finished run of a model that is trained.")
    return Weights(folder, recipe, open_store(stores.facts_of(folder)[0], verify=False), chosen)


def fitted(weights: Weights, model: Model, store: Store) -> dict[str, Tensor]:
    """The weights for a model on a store, whose items may be others or in another order.

    An item that the other run does not know is given the mean of all that it knows. A UserError where the models differ.
    """
    wanted = model.state_dict()
    tensors = {name: wanted[name] if name in model.made_anew else tensor for name, tensor in weights.tensors.items()}
    if (texts := getattr(model, "texts", None)) is not None:
        require_same_words(weights.folder, texts.tokenizer)
    strange = sorted(tensors.keys() ^ wanted.keys())
    if strange:
        raise UserError(
            f"base: the weights of {weights.folder} are those of another model ({weights.recipe.model.kind} of its settings): "
            f"{', '.join(strange[:3])}{' …' * (len(strange) > 3)} are not in both. Give this run the model of that one"
            + (", or take its encoder alone: model.pretrained." if hasattr(model, "encoder") else ".")
        )
    if _item_files(weights.store) != _item_files(store):
        order = _matched(weights, store)
        for name in item_rows(model, store.num_items):
            tensors[name] = _ordered(tensors[name], order)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"base: {name} has the shape {list(tensor.shape)} in {weights.folder} and {list(wanted[name].shape)} here. "
                "Give this run the model of that one."
            )
    return tensors


def item_rows(model: Model, items: int) -> list[str]:
    """The names of what has a row for every item: tables, and numbers of the model's own such as biases."""
    tables = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and rows(module.weight) == items + 1 and not getattr(module, "_read_whole", False)
    ]
    own = [name for name, tensor in model.named_parameters(recurse=False) if tensor.ndim == 1 and rows(tensor) == items + 1]
    return tables + own


def rows(table: Tensor) -> int:
    """Of all of a table, where other processes hold some of it."""
    parts = getattr(table, "_parts", None)
    return len(table) if parts is None else int(parts.total)


def _item_files(store: Store) -> dict[str, Any]:
    """The checksums of the raw ids: where they are the same, so are the rows."""
    return {name: facts for name, facts in store.card["files"].items() if name.startswith("item_ids")}


def _matched(weights: Weights, store: Store) -> Tensor:
    """The row in which the other run has each item, 0 where it has not: int64 [V]."""
    found = torch.from_numpy(weights.store.item_ids.find(store.item_ids.raw(range(store.num_items))))
    lacking = int((found < 0).sum())
    if lacking > UNKNOWN * len(found):
        raise UserError(
            f"base: {weights.folder} knows {len(found) - lacking:,} of the {len(found):,} items of {store.folder}: it is of "
            "other data, or of other raw ids."
        )
    return found + 1


def _ordered(rows: Tensor, order: Tensor) -> Tensor:
    """The first row, then a row for each item: [W + 1, …], int64 [V] -> [V + 1, …]."""
    taken = rows[order]
    taken[order == 0] = rows[1:].mean(0)
    return torch.cat([rows[:1], taken])


def given(recipe: AnyRecipe) -> str | None:
    """Whose weights a training begins with: those of another run, or a pretrained encoder's."""
    pretrained: str | None = getattr(recipe.model, "pretrained", None)
    return recipe.base or pretrained


def require_given(recipe: AnyRecipe) -> None:
    """A UserError for adapters beside weights that nobody has learnt."""
    if recipe.adapters is not None and given(recipe) is None:
        encoder = " or an encoder, model.pretrained" * hasattr(recipe.model, "pretrained")
        raise UserError(f"adapters are added to what was learnt before: name the folder of another run, base=RUN{encoder}.")


def begin(model: Model, recipe: AnyRecipe, store: Store) -> None:
    """Give a model of full size the weights of the recipe's base."""
    assert recipe.base is not None
    load_whole(model, fitted(weights_of(Path(recipe.base)), model, store))


def put_on(model: Model, recipe: AnyRecipe, store: Store) -> None:
    """Freeze the model with the weights of the recipe's base, or with those that it begins with, and give it adapters.

    Without either what is frozen is what was drawn: good to measure a step, and nothing else. Which weights they are is a
    part of the model's state, `base`, so that its checkpoints go with no others; those of another run that gates look at, too.
    """
    digest, pretrained = bytes(32), getattr(recipe.model, "pretrained", None)
    if isinstance(model, Counted):
        raise UserError(f"adapters: {recipe.model.kind} is counted, not trained: there is nothing to adapt.")
    if recipe.base is not None:
        weights = weights_of(Path(recipe.base))
        load_whole(model, fitted(weights, model, store))
        digest = weights.digest
    elif pretrained is not None:
        model.begin()
        digest = Weights(Path(pretrained), recipe, store, model.state_dict()).digest
    if (gate := add_adapters(model, recipe, store)) is not None:
        digest = hashlib.sha256(digest + gate).digest()
    model.register_buffer("base", torch.frombuffer(bytearray(digest), dtype=torch.uint8))


def add_adapters(model: Model, recipe: AnyRecipe, store: Store | None = None) -> bytes | None:
    """Freeze a model as it is, and give it the recipe's adapters; without a store their gate has no other run to look at.

    Returns the digest of the weights of that other run, where there is one.
    """
    config = recipe.adapters
    assert config is not None
    adapt(model, config)
    if isinstance(config, ILoRA):
        if not hasattr(model, "gate"):
            raise UserError(
                f"adapters: {recipe.model.kind} predicts every event of a history at once, each from those before it; a gate "
                "made of the whole history would tell it what follows. {kind: ilora} is for bert4rec, which sees what is not "
                "masked, and for recformer, which reads what came before; {kind: lora} is for all."
            )
        model.gate, digest = _gate(config, recipe, store)
        return digest
    return None


def _gate(config: ILoRA, recipe: AnyRecipe, store: Store | None) -> tuple[Gate, bytes | None]:
    if config.gate == "base" or store is None:
        return Gate(recipe.model.width, config.experts, config.rank), None
    weights = weights_of(Path(config.gate), "adapters.gate")
    if weights.recipe.model.batch is not SequenceBatch:
        raise UserError(
            f"adapters.gate: {config.gate} is a run of {weights.recipe.model.kind}, whose vector of a user is learnt from all "
            "that the user did, so it knows what is to be predicted. Name a run of a model of sequences, or leave it at base."
        )
    model: Model = weights.recipe.model.build(stores.spec_of(store, _shown_alike(recipe, weights.recipe)))
    model.load_state_dict(fitted(weights, model, store), strict=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter._of_base = True  # type: ignore[attr-defined]
    width: Any = getattr(weights.recipe.model, "width", None)
    return Gate(width, config.experts, config.rank, model), weights.digest


def _shown_alike(recipe: AnyRecipe, other: AnyRecipe) -> AnyRecipe:
    """The other recipe, of which as long histories must have been shown as of this one."""
    if other.batches.max_length < recipe.batches.max_length:
        raise UserError(
            f"adapters.gate: its run was shown histories of {other.batches.max_length} events, and this one is shown "
            f"{recipe.batches.max_length}: train one with batches.max_length={recipe.batches.max_length} at least."
        )
    return other
