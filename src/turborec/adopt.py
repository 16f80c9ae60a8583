"""Weights from elsewhere as runs of ours: checkpoints of other libraries, and adapters merged into their base."""

import importlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turborec import recipes, run, stores, training
from turborec.assembly import Run
from turborec.bridges import pickled
from turborec.bridges.foreign import Imported, Table, read_ids
from turborec.data.store import Store, sha256
from turborec.errors import UserError, closest
from turborec.evaluate import Result
from turborec.files import write_whole
from turborec.nn import lora
from turborec.recipe import override, read
from turborec.recipes import AnyRecipe
from turborec.stores import Places

logger = logging.getLogger("turborec")

LIBRARIES = ("recbole", "rectools", "replay")

UNKNOWN = 0.5
"""Share of a store's items that a checkpoint may not know before it is held to be of other data."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that a library has saved."""

    library: str
    path: Path
    ids: Path | None = None  # the rows of items by raw id, where the file does not hold them

    def read(self) -> Imported:
        """What it holds in our terms, with the rows of its items."""
        if self.library not in LIBRARIES:
            raise UserError(f"No library is called {self.library!r}{closest(self.library, LIBRARIES)}.")
        bridge = importlib.import_module(f"turborec.bridges.{self.library}")
        content = pickled.read(self.path)
        try:
            imported: Imported = bridge.convert(content, self.path)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # A file may hold anything in the places of settings and weights.
            told = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"{self.path} is not what {self.library} writes ({told}). Is the library the right one?") from error
        if self.ids is not None:
            return replace(imported, ids=_of_all_items(read_ids(self.ids), imported, self.ids))
        if imported.ids is None:
            raise UserError(
                f"{self.path} does not hold the raw ids of its items. Write them down where the data were prepared, and name "
                f"the file with --items: {bridge.IDS}"
            )
        return imported


def _of_all_items(ids: dict[str, int], imported: Imported, path: Path) -> dict[str, int]:
    """The rows of the items, without that of padding, where they are those of the checkpoint's tables; else a UserError."""
    ids = {text: row for text, row in ids.items() if (text, row) != ("[PAD]", imported.padding)}
    if wrong := [text for text, row in ids.items() if row == imported.padding]:
        raise UserError(
            f"Row {imported.padding} is padding, but {path} gives it to {wrong[0][:60]!r}: are its rows shifted by one?"
        )
    rows = min(len(table.rows) for table in imported.tables.values()) - (imported.padding is not None)
    if len(ids) != rows:
        raise UserError(f"The checkpoint has {rows:,} items, {path} names {len(ids):,}: is it of the same data?")
    return ids


def adopt(
    checkpoint: Checkpoint,
    name: str,
    overrides: Iterable[str],
    folder: Path,
    places: Places,
    device: str = "auto",
) -> tuple[Run, dict[str, Result]]:
    """Leave the checkpoint's model as a finished run in `folder`, and its test results and the anchors'.

    The recipe called `name` says on what data, and what is evaluated; `overrides` may add what the checkpoint does not say.
    """
    if (folder / "recipe.yaml").exists():
        raise UserError(f"{folder} holds a run already. Name another folder.")
    imported = checkpoint.read()
    recipe = _recipe(imported, name, overrides)
    store = stores.of_recipe(recipe, places)
    weights, remarks = weights_for(imported, store)
    try:  # before there is a folder, so that a mistake leaves none
        recipe.model.build(stores.spec_of(store, recipe)).load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"The weights do not fit the recipe's model. {' '.join(str(error).split())[:600]}") from error

    def take(opened: Run) -> None:
        for remark in remarks:
            logger.warning(remark)
        facts = {"library": checkpoint.library, "checkpoint": checkpoint.path.name, "sha256": sha256(checkpoint.path)}
        training.adopt(opened, weights)
        write_whole(folder / "imported.json", json.dumps(facts, indent=1))

    return run.carry_out(recipe, folder, replace(places, store=store.folder), device, take)


def merge(adapted: Path, folder: Path, places: Places, device: str = "auto") -> tuple[Run, dict[str, Result]]:
    """Leave a run's base and the adapters that it has learnt as one model, a finished run in `folder`; and its results.

    A UserError where the run has no adapters, or such as each sequence weighs in its own way.
    """
    if (folder / "recipe.yaml").exists():
        raise UserError(f"{folder} holds a run already. Name another folder.")
    recipe = run.recipe_of(adapted)
    if recipe.adapters is None:
        raise UserError(f"{adapted} has no adapters: its model is whole already.")
    opened = run.reopen(adapted, places, device, recipe.model_copy(update={"adapters": _in_full(recipe.adapters)}))
    lora.merge(opened.model)
    weights = {name: tensor for name, tensor in opened.model.state_dict().items() if name != "base"}

    def take(merged: Run) -> None:
        facts = {"adapters": str(adapted.resolve()), "base": recipe.base}
        training.adopt(merged, weights)
        write_whole(folder / "merged.json", json.dumps(facts, indent=1))

    whole = recipe.model_copy(update={"adapters": None, "base": None})
    return run.carry_out(whole, folder, replace(places, store=opened.store.folder), device, take)


def _in_full(adapters: Any) -> Any:
    """The adapters beside a base that is not rounded: what is added to it would be."""
    return adapters.model_copy(update={"frozen": "float32"})


def _recipe(imported: Imported, name: str, overrides: Iterable[str]) -> AnyRecipe:
    """The recipe with the checkpoint's model in place of its own."""
    tree = read(recipes.find(name))
    tree["model"] = imported.model
    own = [f"batches.max_length={imported.max_length}", "batches.overlap=0"]
    tree = override(tree, [*own, *overrides])
    if "heads" not in tree["model"]:
        raise UserError(
            "The checkpoint does not say how many heads its attention has. Say it: model.heads=2, or how many it was."
        )
    return recipes.from_tree(tree, f"The recipe {name} with the imported model")


def weights_for(imported: Imported, store: Store) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of our model, tables in the order of the store's items, and what its user should know of them.

    An item that the checkpoint does not know is given the mean of all it knows, and so the mean of their scores. A UserError
    where the items are others.
    """
    ids, wanted = imported.ids or {}, store.item_ids.raw(range(store.num_items))
    held = min(len(table.rows) for table in imported.tables.values())
    if len(set(ids.values())) != len(ids) or not all(0 <= row < held for row in ids.values()):
        raise UserError(f"The rows of the items should all differ and lie between 0 and {held - 1}, as the checkpoint's do.")
    unknown, beyond = [text for text in wanted if text not in ids], sorted(ids.keys() - set(wanted))
    if len(unknown) > UNKNOWN * len(wanted):
        raise UserError(
            f"The checkpoint knows {len(wanted) - len(unknown):,} of the {len(wanted):,} items of {store.folder}: it is of "
            f"other data, or of other raw ids. It knows such as {_examples(ids)}; the data have such as {_examples(unknown)}."
        )
    remarks = []
    if unknown:
        remarks.append(
            f"The checkpoint does not know {len(unknown):,} of the {len(wanted):,} items, such as {_examples(unknown)}: each "
            "is given the mean of the vectors that it knows, and so ranks in the middle."
        )
    if beyond:
        remarks.append(f"Not in the data and left out: {len(beyond):,} items of the checkpoint, such as {_examples(beyond)}.")
    known, order = torch.tensor(list(ids.values())), torch.tensor([ids.get(text, -1) for text in wanted])
    tables = {name: _ordered(table, order, known) for name, table in imported.tables.items()}
    return imported.weights | tables, remarks


def _ordered(table: Table, order: Tensor, known: Tensor) -> Tensor:
    """The first row, then a row for each item: [R, …], int64 [V], int64 [K] -> [V + 1, …]."""
    rows = table.rows[order.clamp(min=0)]
    rows[order < 0] = table.rows[known].mean(0)
    return torch.cat([table.first[None], rows])


def _examples(ids: Iterable[str]) -> str:
    return ", ".join(repr(text[:60]) for text, _ in zip(ids, range(3), strict=False))
