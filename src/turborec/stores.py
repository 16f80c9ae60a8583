"""The store a recipe asks for: prepared, found again, or refused; and what a model must know of it."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turborec.data.batch import DataSpec, PairBatch
from turborec.data.loader import ALONE, Deal, TrainingBatches
from turborec.data.pairs import PairBatches, interactions
from turborec.data.schema import UNKNOWN_TIME, FeatureTable, RawTables
from turborec.data.split import below
from turborec.data.store import Part, Store, open_store, read_card
from turborec.errors import UserError
from turborec.features.tokens import tokens_of
from turborec.recipes import AnyRecipe, Features
from turborec.sources._local import find

logger = logging.getLogger("turborec")

ADDED = "added_features"
"""Where the card of a store says which feature tables came from a recipe and not from its source."""

FACTS = "data.json"
"""In a run folder: on what data the run began."""

YEAR_1980 = 315_532_800
"""Seconds at its beginning."""


@dataclass(frozen=True)
class Places:
    """Where data lie; they change how a run is carried out, but not what it computes."""

    home: Path  # where raw data and prepared stores are kept
    raw: Path | None = None  # a folder that holds the raw files already
    store: Path | None = None  # a prepared store to use as it is, on machines that cannot prepare one


def of_recipe(recipe: AnyRecipe, places: Places) -> Store:
    """The recipe's store: downloaded, read and prepared, unless that was done before."""
    if places.store is not None:
        return _fitting(open_store(places.store), recipe)
    from turborec.data.prepare import prepare

    source = recipe.data.source
    if places.raw is not None and not places.raw.is_dir():
        raise UserError(f"There is no folder {places.raw}, where the raw files were said to be (--raw).")
    folder = places.raw or places.home / "raw" / source.kind
    source.download(folder)
    tables = _with_features(source.parse(folder), recipe.data.features, folder)
    described = {**source.model_dump(mode="json"), **_added(recipe)}
    path = prepare(tables, described, recipe.data.prepare, recipe.data.split, places.home)
    store = open_store(path)
    _tell(store, path)
    _tell_times(store, ordered="the order column" in store.card["tie_rule"])
    _tell_untested(store)
    return store


def prepared_before(recipe: AnyRecipe, home: Path) -> Path | None:
    """The only store below `home` that was prepared by this recipe's rules, from whatever files; None if it is not one."""
    source = {ADDED: {}, **recipe.data.source.model_dump(mode="json"), **_added(recipe)}
    rules = {"prepare": recipe.data.prepare.rules(), "split": recipe.data.split.model_dump(mode="json")}
    found = []
    for card_file in (home / "stores").glob("*/card.json"):
        try:
            card = read_card(card_file.parent)
            told = {ADDED: {}, **card["source"]}
            made = {name: told.get(name) for name in source} == source
            alike = all(card[part].items() <= rule.items() for part, rule in rules.items())
            alike = alike and card["prepare"].get("values", False) == recipe.data.prepare.values
        except (UserError, KeyError, TypeError, AttributeError):
            continue
        found += [card_file.parent] * (made and alike)
    return found[0] if len(found) == 1 else None


def _added(recipe: AnyRecipe) -> dict[str, Any]:
    """What a card says of a recipe's own feature tables, where there are any."""
    named = {name: files.model_dump(mode="json") for name, files in recipe.data.features.items()}
    return {ADDED: named} if named else {}


def _with_features(tables: RawTables, added: Mapping[str, Features], folder: Path) -> RawTables:
    """The tables with the recipe's own features beside the source's."""
    for name in added:
        if name in tables.features:
            raise UserError(
                f"data.features.{name}: the source has a feature table of this name already, {tables.features[name].path}. "
                "Give yours another name, or leave it out."
            )
    found = {name: _table(name, files, folder) for name, files in added.items()}
    return replace(tables, features={**tables.features, **found})


def _table(name: str, files: Features, folder: Path) -> FeatureTable:
    try:
        return FeatureTable(find(files.table, folder), find(files.ids, folder) if files.ids else None)
    except UserError as error:
        how = "`turborec data features` computes such tables from texts and images (docs/features.md)."
        raise UserError(f"data.features.{name}: {error} {how}") from error


def _tell(store: Store, path: Path) -> None:
    """What of the raw data is not in the store, and what looks wrong about it."""
    for table, rows in store.card["rows"].items():
        if bad := sum(rows["rejected"].values()):
            where = path / "quarantine.tsv"
            logger.warning(f"{bad:,} of {rows['rows']:,} rows of the {table} are bad and left out: see {where}")
    dropped = {reason.replace("_", " "): count for reason, count in store.card["counts"]["dropped"].items() if count}
    if dropped:
        told = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        logger.info(f"Left out by data.prepare: {told}. What stays is {store.card['counts']['events']:,} events.")
    if store.card["times"] and store.card["times"][1] < YEAR_1980 * (1000 if store.card["time_unit"] == "milliseconds" else 1):
        logger.warning("All times lie before 1980. Is the column of times the right one, and in the unit it is taken for?")


def _tell_times(store: Store, ordered: bool) -> None:
    """Which histories nothing but the place in the files orders."""
    offsets = store.histories.offsets
    counts, undated = np.diff(offsets), below(offsets, store.histories.times, UNKNOWN_TIME + 1)
    if ordered or not undated.any():
        return
    if np.array_equal(undated, counts):
        logger.warning("No event has a time: every history is in the order of the files.")
        return
    lacking, mixed = int(undated.sum()), int(((undated > 0) & (undated < counts)).sum())
    logger.warning(
        f"{lacking:,} of {offsets[-1]:,} events have no time. A history with such an event is in the order of the files as "
        f"a whole, known times or not: {mixed:,} users have both. Fill in the times, or leave these rows out."
    )


def _tell_untested(store: Store) -> None:
    """Users who have events to be predicted, but none before them to predict from."""
    if store.card.get("split", {}).get("kind") != "global_time":
        return
    parts: tuple[Part, ...] = ("validation", "test")
    for part in parts:
        begins, ends = store.span(part, np.arange(store.num_users))
        lost = int((ends > begins).sum()) - len(store.users_of(part))
        if lost > 0:
            logger.info(f"{lost:,} users have events in the {part} part and none before it: they are not evaluated.")


def of_run(folder: Path, recipe: AnyRecipe, places: Places) -> Store:
    """The store that the run in `folder` began with, or the recipe's where it has not begun."""
    if not (folder / FACTS).is_file():
        return of_recipe(recipe, places)
    known, key = facts_of(folder)
    store = open_store(known) if places.store is None and known.is_dir() else of_recipe(recipe, places)
    if store.key != key:
        raise UserError(
            f"The data in {store.folder} are not those that the run in {folder} began with (key {store.key[:16]}, not "
            f"{key[:16]}). Name the right store with --store, or train again in a new folder."
        )
    return store


def facts_of(folder: Path) -> tuple[Path, str]:
    """The folder and the key of the store that the run in `folder` began with."""
    facts_file = folder / FACTS
    try:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        return Path(facts["store"]), str(facts["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{facts_file}, which says on what data the run began, cannot be read ({error}). Write it anew: "
            '{"store": "<folder of the store>", "key": "<key on its card>"}.'
        ) from error


def spec_of(store: Store, recipe: AnyRecipe) -> DataSpec:
    """The facts a model is built from."""
    shown, counts = recipe.batches, torch.from_numpy(store.item_counts())
    spec = DataSpec(store.num_users, store.num_items, shown.max_length, counts, store.ticks, shown.told)
    # Beside the prepared stores, and never among data: a store that was carried here alone has no such place.
    home = store.folder.parents[1] if store.folder.parent.name == "stores" else None
    if (texts := getattr(recipe.model, "texts", None)) is not None:
        return replace(spec, texts=tokens_of(store, texts, home), kept=home)
    spec = replace(spec, features=_Tables(store))
    if recipe.model.batch is not PairBatch:
        return spec
    return replace(spec, graph=interactions(store), kept=home and home / "graphs")


class _Tables(Mapping[str, torch.Tensor]):
    """The features of a store, each read when a model asks for it."""

    def __init__(self, store: Store) -> None:
        self._tables = store.features

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self._tables[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


def training_batches(recipe: AnyRecipe, store: Store, deal: Deal = ALONE) -> TrainingBatches | PairBatches:
    """What the recipe's model eats of the store's training part; `deal`: this process's place among how many."""
    kind = PairBatches if recipe.model.batch is PairBatch else TrainingBatches
    return kind(store, recipe.batches, recipe.seed, deal)


def _fitting(store: Store, recipe: AnyRecipe) -> Store:
    """The store itself, unless it was prepared or split by other rules than the recipe's, or lacks features that it names."""
    wanted = {
        "prepare": recipe.data.prepare.rules(),
        "split": recipe.data.split.model_dump(mode="json"),
    }
    for part, rules in wanted.items():
        if part in store.card and store.card[part] != rules:
            raise UserError(
                f"The store {store.folder} was made with data.{part} {store.card[part]}, and the recipe says {rules}. "
                f"Set data.{part} to what the store was made with, or prepare a store for this recipe."
            )
    there = store.card.get("features", {})
    if lacking := next((name for name in recipe.data.features if name not in there), None):
        known = f"the features {', '.join(there)} alone" if there else "no features"
        raise UserError(
            f"The recipe names data.features.{lacking}, and the store {store.folder} has {known}. Leave it out, or prepare a "
            "store for this recipe."
        )
    return store
