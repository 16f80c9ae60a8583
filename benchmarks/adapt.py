"""Adapt a trained BERT4Rec to other events in several ways; commit how good each is, user by user, and what it costs.

    python benchmarks/adapt.py movietweetings-later-days --out RUNS

Names are those of CASES. This script cuts the events in two, by time or by group of users: the base learns from the one, and
all ways from the other, on one catalogue and split. Each way has the rate that validates best with the first seed. Raw files
are looked for below $TURBOREC_DATA. Rows go to results/adapters/NAME.json; a run that is in RUNS already is not trained again.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ablation import trained, values_of
from measured import command, told
from rows import Row, numbers, write
from turborec import recipes, run, stores
from turborec.cli._options import DEFAULT_HOME
from turborec.data.store import Store
from turborec.engine.log import environment, read_metrics
from turborec.errors import UserError, closest
from turborec.intervals import LEVEL, RESAMPLES, percentile_intervals, resampled_means
from turborec.recipe import dump
from turborec.recipes import AnyRecipe

METRICS = ("ndcg@10", "hr@10")
FROZEN, ANEW = "frozen", "anew"
LOWEST = 1e-12
"""The rate of the frozen base's one epoch: no number of it changes by more than its last digit."""


@dataclass(frozen=True)
class Case:
    """Two halves of a data set, as SQL over its files."""

    files: dict[str, str]  # name in the SQL -> file below $TURBOREC_DATA
    base: str
    then: str
    columns: dict[str, str]  # of the source `table`
    told: str
    epochs: int = 30


def by_time(table: str, time: str, share: float) -> tuple[str, str]:
    """The events before and from the instant that this share of all comes before."""
    cut = f"(SELECT quantile_disc({time}, {share}) FROM {table})"
    return f"SELECT * FROM {table} WHERE {time} < {cut}", f"SELECT * FROM {table} WHERE {time} >= {cut}"


def on_the_same_items(begin: int, cut: int, end: int) -> tuple[str, str]:
    """Globo's clicks of a while, and of a while after it on the articles that the first has: news is not read for long."""
    first = f"SELECT * FROM e WHERE click_timestamp >= {begin} AND click_timestamp < {cut}"
    known = f"SELECT click_article_id FROM ({first}) GROUP BY click_article_id HAVING count(*) >= 5"
    then = f"SELECT * FROM e WHERE click_timestamp >= {cut} AND click_timestamp < {end}"
    return tuple(f"{part} AND click_article_id IN ({known})" for part in (first, then))  # type: ignore[return-value]


DAY = 86_400_000
BEGAN = 1_506_826_800_000
"""Milliseconds: globo's first midnight, where its readers live."""

GLOBO = on_the_same_items(BEGAN + 7 * DAY, BEGAN + 9 * DAY, BEGAN + 9 * DAY + DAY // 2)

CASES = {
    "movietweetings-later-days": Case(
        {"e": "movietweetings/ratings.parquet"},
        *by_time("e", "timestamp", 0.8),
        {"user": "user_id", "item": "movie_id", "time": "timestamp"},
        "the first 80 % of the ratings, then the rest",
    ),
    "globo-clicks-later-days": Case(
        {"e": "globo-clicks/clicks.parquet"},
        *GLOBO,
        {"user": "user_id", "item": "click_article_id", "time": "click_timestamp", "time_format": "milliseconds"},
        "the clicks of two days, then those of the next twelve hours on the same articles (five clicks each at least)",
        epochs=12,
    ),
    "ml-1m-women": Case(
        {"e": "ml-1m/interactions.parquet", "u": "ml-1m/users.parquet"},
        "SELECT * FROM e WHERE user_id IN (SELECT user_id FROM u WHERE gender = 'M')",
        "SELECT * FROM e WHERE user_id IN (SELECT user_id FROM u WHERE gender = 'F')",
        {"user": "user_id", "item": "item_id", "time": "timestamp", "order": "position"},
        "men, then women",
    ),
}

WAYS: dict[str, list[str]] = {
    "full": [],
    "lora": ["adapters={kind: lora, rank: 8}"],
    "ilora": ["adapters={kind: ilora, rank: 8, experts: 4}"],
    "scalar_gate": ["adapters={kind: scalar_gate, rank: 8}"],
}
RATES = {"full": (1e-4, 3e-4, 1e-3), ANEW: (1e-3, 2e-3), "lora": (1e-3, 3e-3, 1e-2, 3e-2)}


def cut(case: Case, folder: Path) -> dict[str, Path]:
    """Both halves as files, written now unless they were."""
    data = Path(os.environ.get("TURBOREC_DATA", "."))
    found = {}
    for name, query in (("base", case.base), ("then", case.then)):
        path = found[name] = folder / f"{name}.parquet"
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with duckdb.connect() as con:
            for table, file in case.files.items():
                if not (data / file).is_file():
                    raise UserError(f"Expected {data / file}: TURBOREC_DATA should name the folder of the data sets.")
                con.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{data / file}')")
            con.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return found


def recipe_of(case: Case, events: Path, core: int, changes: list[str]) -> AnyRecipe:
    """BERT4Rec of two layers on one half."""
    source = {"kind": "table", "events": str(events.resolve()), **case.columns}
    core_of = {"min_user_events": core, "min_item_events": core}
    rest = [
        f"data={json.dumps({'source': source, 'prepare': core_of})}",
        "batches.max_length=50",
        "batches.tokens=3200",
        f"train.epochs={case.epochs}",
        "stopping.patience_epochs=5",
        "select=ndcg@10",
        *changes,
    ]
    return recipes.load("ml-1m/bert4rec", rest)


def apart(recipe: AnyRecipe, folder: Path, store: Store) -> None:
    """Train in a process of its own, so that the most memory it holds is its own."""
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "turborec.run", str(path), "--store", str(store.folder), "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def best_validation(folder: Path, select: str) -> float:
    """Of all epochs of a run."""
    return max(record[select] for record in read_metrics(folder) if record["kind"] == "epoch" and select in record)


def cost(folder: Path) -> dict[str, float]:
    """What a training took: processor seconds, epochs, the most memory, what it trained and left on disk."""
    clocks = [record for record in read_metrics(folder) if record["kind"] == "clock"]
    epochs = [record for record in read_metrics(folder) if record["kind"] == "epoch"]
    sizes = json.loads((folder / "model.json").read_text(encoding="utf-8"))["parameters"]
    saved = sum(path.stat().st_size for path in sorted((folder / "checkpoints").iterdir())[-1].glob("model.safetensors"))
    return {
        "training_cpu_seconds": sum(record.get("training_cpu_seconds", 0.0) for record in clocks),
        "epochs": len(epochs),
        "peak_mib": max(record["peak_mib"] for record in clocks),
        "trained": sizes["trained"],
        "parameters": sizes["total"],
        "trainable_share": sizes["trained"] / sizes["total"],
        "checkpoint_mib": saved / 2**20,
    }


def main() -> None:
    """Cut, train, adapt and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True, help="the folder of the cut files and the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS))
    chosen = parser.parse_args()
    if chosen.name not in CASES:
        raise UserError(f"No case is called {chosen.name!r}{closest(chosen.name, list(CASES))}.")
    case, home = CASES[chosen.name], Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME))
    files = cut(case, chosen.out)
    places = stores.Places(home)

    def carried_out(name: str, recipe: AnyRecipe, seed: int) -> Path:
        own, folder = recipe.model_copy(update={"seed": seed}), chosen.out / f"{name}-{seed}"
        store = stores.of_recipe(own, places)
        if not run.is_finished(folder):
            apart(own, folder, store)
        return trained(own, folder, home, store)

    bases = {s: carried_out("base", recipe_of(case, files["base"], 5, []), s) for s in range(1, chosen.seeds + 1)}

    def adapted(seed: int, changes: list[str], base: bool = True) -> AnyRecipe:
        beginning = [f"base={bases[seed].resolve()}"] if base else []
        return recipe_of(case, files["then"], 3, [*beginning, *changes])

    found: dict[str, list[Path]] = {}
    rates: dict[str, float | None] = {FROZEN: None}
    still = ["train.epochs=1", f"train.optimizer={{kind: adamw, lr: {LOWEST}}}"]
    found[FROZEN] = [carried_out(FROZEN, adapted(seed, still), seed) for seed in bases]
    for way in (*filter(None, chosen.ways.split(",")), ANEW):
        tried = {}
        for rate in RATES.get(way, RATES["lora"]):
            changes = [*WAYS.get(way, []), f"train.optimizer.lr={rate}"]
            folder = carried_out(f"{way}-{rate:g}", adapted(1, changes, way != ANEW), 1)
            tried[rate] = best_validation(folder, "ndcg@10")
        rates[way] = best = max(tried, key=lambda rate: tried[rate])
        changes = [*WAYS.get(way, []), f"train.optimizer.lr={best}"]
        found[way] = [carried_out(f"{way}-{best:g}", adapted(seed, changes, way != ANEW), seed) for seed in bases]
    rows = rows_of(chosen.name, case, found, rates, environment() | {"command": command(parser.prog)})
    print(write(f"adapters/{chosen.name}", rows))


def rows_of(
    name: str, case: Case, found: dict[str, list[Path]], rates: dict[str, float | None], provenance: dict[str, Any]
) -> list[Row]:
    """A row for each way."""
    names = [f"{metric}_masked" for metric in METRICS]
    values = {way: values_of(runs, "bert4rec", names) for way, runs in found.items()}
    rows = []
    for way, runs in found.items():
        users, own = values[way]
        assert users == values[FROZEN][0]
        low, high = percentile_intervals(resampled_means(own - values[FROZEN][1]))
        result = json.loads((runs[0] / "evaluation" / "test" / "bert4rec" / "result.json").read_text(encoding="utf-8"))
        costs = [cost(folder) for folder in runs]
        means = {fact: sum(one[fact] for one in costs) / len(costs) for fact in costs[0]}
        difference = (
            {} if way == FROZEN else {f"{m}_difference": (own - values[FROZEN][1])[:, i].mean() for i, m in enumerate(METRICS)}
        )
        if way == FROZEN:
            means |= {"trained": 0, "trainable_share": 0.0, "training_cpu_seconds": 0.0, "epochs": 0, "checkpoint_mib": 0.0}
        rows.append(
            {
                "kind": "adapters",
                "data": name,
                "model": "bert4rec",
                "recipe": "ml-1m/bert4rec",
                "variant": way,
                "seed": 1,
                "protocol": {
                    **result["protocol"],
                    "history": "masked",
                    "case": case.told,
                    "seeds": len(runs),
                    "rate": rates[way],
                    "overrides": WAYS.get(way, []),
                    "recipe": run.recipe_of(runs[0]).model_dump(mode="json", exclude={"data", "base"}),
                    "interval": f"{LEVEL:.0%}, {RESAMPLES:,} resamples of users, values of seeds averaged user by user",
                },
                "values": numbers({metric: own[:, i].mean() for i, metric in enumerate(METRICS)} | difference | means),
                "intervals": {f"{m}_difference": [low[i], high[i]] for i, m in enumerate(METRICS) if way != FROZEN},
                "provenance": provenance,
            }
        )
    return rows


if __name__ == "__main__":
    told(main)
