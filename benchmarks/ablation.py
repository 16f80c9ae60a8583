"""Train a recipe, what is left of it without its parts or its times, and others; commit how they differ, user by user.

    python benchmarks/ablation.py ml-latest-small/ss4rec --out RUNS [--variants "S5 alone"] [--against ml-latest-small/sasrec]
    python benchmarks/ablation.py tiktok-mm/lightgcn --out RUNS --variants "" --against tiktok-mm/dragon --metrics recall@20

Popularity stands beside them, and what began with given weights as it was before. Rows go to
results/ablation/<data>-<model>.json. A run that is in RUNS already, under its name there, is not trained again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from measured import arguments, chosen_by, command, prepared, told
from rows import Row, write
from turborec import recipes, run, stores
from turborec.baseline import BEFORE
from turborec.cli._options import DEFAULT_HOME
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import Store, open_store, seal_of, sha256
from turborec.engine.log import environment
from turborec.errors import UserError, closest
from turborec.intervals import LEVEL, RESAMPLES, percentile_intervals, resampled_means
from turborec.recipe import dump
from turborec.recipes import AnyRecipe

METRICS, HISTORIES = ("hr@10", "ndcg@10"), ("kept", "masked")

WHOLE, SHUFFLED, ANCHOR = "default", "gaps shuffled", "popularity"
VARIANTS = {
    "S5 alone": ["model.mixers=[s5]"],
    "Mamba alone": ["model.mixers=[mamba]"],
    "times ignored": ["model.intervals={kind: none}"],
    "no bias of repeats": ["model.repeat_bias=false"],
    SHUFFLED: [],
}


def shuffled(store: Store, folder: Path) -> Store:
    """The store with each user's gaps dealt anew among that user's events: the same gaps, which mean nothing any more."""
    key = hashlib.sha256(f"{store.key} {SHUFFLED}".encode()).hexdigest()
    if folder.exists():
        made = open_store(folder)
        if made.key != key:
            raise UserError(f"{folder} was made of another store: choose another --out.")
        return made
    times = np.array(store.histories.times)
    if (times == UNKNOWN_TIME).any():
        raise UserError(f"Not all times of {store.folder} are known, so there are no gaps to deal: leave out {SHUFFLED!r}.")
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
    shutil.copytree(store.folder, building)
    generator = np.random.default_rng(0)
    for begin, end in zip(store.histories.offsets[:-1].tolist(), store.histories.offsets[1:].tolist(), strict=True):
        gaps = generator.permutation(np.diff(times[begin:end]))
        times[begin + 1 : end] = times[begin] + np.cumsum(gaps)
    path = building / "times.npy"
    np.save(path, times)
    card = json.loads((building / "card.json").read_text(encoding="utf-8"))
    card.pop("seal", None)
    card["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    card["key"] = key
    (building / "card.json").write_text(json.dumps(card | {"seal": seal_of(card)}, indent=1), encoding="utf-8")
    building.rename(folder)
    return open_store(folder)


def trained(recipe: AnyRecipe, folder: Path, home: Path, store: Store) -> Path:
    """The run of a recipe, trained now unless it was; a UserError where the folder holds another one or other code made it."""
    if not run.is_finished(folder):
        run.train(recipe, folder, stores.Places(home, None, store.folder))
    key, commit = (
        json.loads((folder / name).read_text(encoding="utf-8"))[fact]
        for name, fact in (("data.json", "key"), ("environment.json", "commit"))
    )
    if dump(run.recipe_of(folder)) != dump(recipe) or key != store.key:
        raise UserError(f"{folder} holds a run of another recipe or of other data: choose another --out.")
    if commit != (here := environment()["commit"]):
        raise UserError(f"{folder} was trained by commit {commit}, and this is {here}: choose another --out.")
    return folder


def store_of(recipe: AnyRecipe, base: Store, places: stores.Places) -> Store:
    """The store of a recipe, which may have feature tables that others lack, but the same events."""
    store = stores.of_recipe(recipe, places)
    keys = {one.card.get("events_key", one.key) for one in (base, store)}
    if len(keys) > 1:
        raise UserError(f"{store.folder} and {base.folder} hold other events: only recipes for the same data can be compared.")
    return store


def variants_of(chosen: argparse.Namespace) -> dict[str, AnyRecipe]:
    """The recipes to compare by the names of the rows; a UserError for one that is not known or changes nothing."""
    wanted = [name.strip() for name in chosen.variants.split(",") if name.strip()]
    if strange := [name for name in wanted if name not in VARIANTS]:
        raise UserError(f"There is no variant {strange[0]!r}{closest(strange[0], list(VARIANTS))}.")
    found = {WHOLE: recipes.load(chosen.recipe, chosen.overrides)}
    for name in wanted:
        found[name] = recipes.load(chosen.recipe, [*chosen.overrides, *VARIANTS[name]])
        if name != SHUFFLED and dump(found[name]) == dump(found[WHOLE]):
            raise UserError(f"{name!r} changes nothing about {chosen.recipe}: leave it out.")
    for text in chosen.against:
        other, *changes = text.split()
        found[text] = recipes.load(other, [*chosen.overrides, *changes])
    return found


def values_of(runs: Sequence[Path], model: str, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The users in the order of their ids, and what the runs of several seeds have of each on average: [U, C]."""
    tables = [pq.read_table(one / "evaluation" / "test" / model / "per_user.parquet").sort_by("user") for one in runs]
    each = [np.column_stack([table[name].to_numpy() for name in names]) for table in tables]
    return tables[0]["user"].to_pylist(), np.mean(each, axis=0)


def rows_of(chosen: argparse.Namespace, found: dict[str, tuple[str, list[Path]]], provenance: dict[str, Any]) -> list[Row]:
    """A row for each variant and history; `found` has the model's name and the runs of each."""
    data, model = chosen.recipe.rsplit("/", 1)
    metrics, histories = chosen.metrics.split(","), chosen.histories.split(",")
    names = [f"{metric}_{history}" for history in histories for metric in metrics]
    values = {variant: values_of(runs, kind, names) for variant, (kind, runs) in found.items()}
    users, whole = values[WHOLE]
    rows = []
    for variant, (others, own) in values.items():
        if others != users:
            raise SystemExit(f"{variant} is not about the same users as {WHOLE}.")
        low, high = percentile_intervals(resampled_means(own - whole))
        kind, runs = found[variant]
        result = json.loads((runs[0] / "evaluation" / "test" / kind / "result.json").read_text(encoding="utf-8"))
        for history in histories:
            at = {metric: names.index(f"{metric}_{history}") for metric in metrics}
            difference = {f"{metric}_difference": (own - whole)[:, i].mean() for metric, i in at.items() if variant != WHOLE}
            rows.append(
                {
                    "kind": "ablation",
                    "data": data,
                    "model": model,
                    "recipe": chosen.recipe,
                    "variant": variant,
                    "seed": 1,
                    "protocol": {
                        **result["protocol"],
                        "history": history,
                        "seeds": chosen.seeds,
                        "interval": f"{LEVEL:.0%}, {RESAMPLES:,} resamples of users, values of seeds averaged user by user",
                    },
                    "values": {metric: own[:, i].mean() for metric, i in at.items()} | difference,
                    "intervals": {f"{m}_difference": [low[i], high[i]] for m, i in at.items() if variant != WHOLE},
                    "provenance": provenance,
                }
            )
    return rows


def main() -> None:
    """Train and write."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--variants", default="S5 alone,Mamba alone,times ignored,gaps shuffled", help=", ".join(VARIANTS))
    parser.add_argument(
        "--against", nargs="*", default=[], help="other recipes for the same data, each with its changes as one argument"
    )
    parser.add_argument("--metrics", default=",".join(METRICS), help="what is compared, of the recipe's metrics")
    parser.add_argument("--histories", default=",".join(HISTORIES), help="whether what a user had stays a candidate")
    parser.add_argument("--name", help="what the file of rows is called, if not by the recipe")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = chosen_by(parser)
    _, store = prepared(chosen)
    places = stores.Places(Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME)), None, chosen.store)
    found: dict[str, tuple[str, list[Path]]] = {}
    for variant, recipe in variants_of(chosen).items():
        used = shuffled(store, chosen.out / "shuffled") if variant == SHUFFLED else store_of(recipe, store, places)
        for seed in range(1, chosen.seeds + 1):
            folder = chosen.out / f"{re.sub('[^A-Za-z0-9._]+', '-', variant)}-{seed}"
            one = trained(recipe.model_copy(update={"seed": seed}), folder, places.home, used)
            found.setdefault(variant, (recipe.model.kind, []))[1].append(one)
    for variant, (_, runs) in list(found.items()):
        if all((one / "evaluation" / "test" / BEFORE).is_dir() for one in runs):  # those that began with given weights
            found[f"{variant}, before training"] = (BEFORE, runs)
    if all((one / "evaluation" / "test" / ANCHOR).is_dir() for one in found[WHOLE][1]):
        found[ANCHOR] = (ANCHOR, found[WHOLE][1])
    rows = rows_of(chosen, found, environment() | {"command": command(parser.prog)})
    print(write(f"ablation/{chosen.name or chosen.recipe.replace('/', '-')}", rows))


if __name__ == "__main__":
    told(main)
