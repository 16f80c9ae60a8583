"""Measure turborec beside RecBole, RecTools and RePlay, in turns: python benchmarks/peers/run.py (README.md says how).

Each round starts every contestant once, in a process of its own, one after another and in an order that alternates. The
peers run in environments of their own, which are built when they are first needed.
"""

import argparse
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
from jobs import PEERS, Answer, Case

from turborec import recipes
from turborec.engine import hardware, log
from turborec.recipes import AnyRecipe

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "speed"
DATA = ("ml-1m", "amazon-beauty-2014")
MODELS = ("sasrec", "bert4rec", "gru4rec")

SOURCES = {
    "ml-1m": "data.source={kind: table, events: ml-1m/interactions.parquet, user: user_id, item: item_id, order: position}",
}
"""Where a recipe's events are found below $TURBOREC_DATA, if not where the recipe says."""

KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""What turborec asks of glibc for itself (`hardware.keep_freed_memory`). It makes the peers up to a half faster, too."""


@dataclass(frozen=True)
class Data:
    """A data set, prepared by turborec and written out for the peers."""

    store: Path
    events: Path
    preparation_seconds: float


def main() -> None:
    """Measure every case asked for, and write a file of rows for each peer."""
    chosen = arguments()
    # Read once: the results of the first case would make the checkout dirty for the second.
    provenance = log.environment() | {
        "command": shlex.join(["python", "benchmarks/peers/run.py", *sys.argv[1:]]),
        "threads": chosen.threads,
    }
    if (busy := hardware.busy()) and not chosen.busy:
        sys.exit(f"{busy} Nothing was measured; --busy measures all the same.")
    interpreters = {peer: interpreter(peer, chosen.home) for peer in chosen.peers}
    cases = [f"{data}/{model}" for data in chosen.data for model in chosen.models]
    for recipe in [case for case in cases if case in recipes.shipped()]:
        with tempfile.TemporaryDirectory() as scratch:
            Comparison(chosen, recipe, prepare(recipe, Path(scratch)), interpreters, provenance).measure()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), help=f"folders of recipes; by default {' '.join(DATA)}")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=6, help="six give a 95 %% interval of a median")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training in each round, after the warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-length", type=int, help="events shown, instead of the recipe's")
    parser.add_argument("--loss", choices=("exact", "recipe"), default="exact", help="softmax over all items, or the recipe's")
    parser.add_argument("--allocator", choices=("kept", "default"), default="kept", help="the peers' use of freed memory")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of all")
    parser.add_argument("--epochs", type=int, default=0, help="time to quality instead: so many, with a validation after each")
    parser.add_argument("--own-epochs", type=int, help="with --epochs: turborec's, instead of the recipe's")
    parser.add_argument("--limit-seconds", type=float, default=3600.0, help="with --epochs: begin none after so long")
    parser.add_argument("--batch-size", type=int, help="rows of the peers' batches, instead of what was found to suit them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "turborec", help="where environments are built")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too")
    return parser.parse_args()


@dataclass(frozen=True)
class Comparison:
    """One recipe beside the peers."""

    chosen: argparse.Namespace
    recipe: str
    data: Data
    interpreters: dict[str, Path]
    provenance: dict[str, Any]

    def measure(self) -> None:
        """Take the rounds, and write the rows."""
        chosen, recipe = self.chosen, self._recipe()
        given, began = self._jobs(recipe), log.environment()
        answers: dict[str, list[Answer]] = {name: [] for name in given}
        for number in range(1 if chosen.epochs else chosen.rounds):
            for name in list(given) if number % 2 == 0 else list(reversed(given)):
                answer = self._ask(name, given[name], chosen.allocator, f"round {number + 1}")
                if answer is None:
                    del given[name]
                else:
                    answers[name].append(answer)
        if "turborec" not in given:
            sys.exit("turborec itself could not be measured.")
        if not chosen.epochs:
            self._add_memory(given, answers)
            for answer in answers["turborec"]:
                answer["preparation_seconds"] = self.data.preparation_seconds
        told = {"kept": "freed memory is kept, by the peers too", "default": "the peers have glibc's defaults"}
        settings = {
            "allocator": told[chosen.allocator],
            "precision": chosen.precision,
            "threads": chosen.threads,
            "peak_mib": "of a process of its own, the peers' with glibc's defaults",
        }
        case = Case(self.recipe, self._variant(), jobs.protocol(recipe, settings), chosen.seed)
        facts = self.provenance | {name: began[name] for name in ("load_average", "date")}
        for peer in [name for name in given if name != "turborec"]:
            if chosen.epochs:
                rows = jobs.quality_rows(case, peer, answers["turborec"][0], answers[peer][0], facts)
            else:
                rows = jobs.speed_rows(case, peer, answers["turborec"], answers[peer], facts)
            self._write(case.file(peer) + ("-quality" if chosen.epochs else ""), rows)

    def _jobs(self, recipe: AnyRecipe) -> dict[str, dict[str, Any]]:
        """What each contestant is asked to do."""
        chosen = self.chosen
        budget = {name: getattr(chosen, name) for name in ("threads", "seconds", "epochs", "limit_seconds", "seed")}
        # turborec's rate falls over the epochs of its recipe, so it is given these, where epochs are asked for.
        own = {"epochs": (chosen.own_epochs or recipe.train.epochs) if chosen.epochs else 0}
        place = {"store": str(self.data.store), "recipe": self.recipe, "overrides": self._overrides()}
        place["precision"] = chosen.precision
        name, events = self.recipe.split("/")[0], str(self.data.events)
        peers = {
            p: jobs.peer_job(recipe, p, name, events, budget, chosen.precision, chosen.batch_size) for p in self.interpreters
        }
        return {"turborec": place | budget | own, **peers}

    def _recipe(self) -> AnyRecipe:
        return recipes.load(self.recipe, self._overrides())

    def _overrides(self) -> list[str]:
        """The changes to the recipe that concern the model and its batches."""
        length = [f"batches.max_length={self.chosen.max_length}"] if self.chosen.max_length else []
        return length + (["model.loss={kind: cross_entropy}"] if self.chosen.loss == "exact" else [])

    def _variant(self) -> str:
        """What differs from the recipe as shipped, on one thread."""
        chosen, measured, shipped = self.chosen, self._recipe(), recipes.load(self.recipe)
        words = [f"max_length={measured.batches.max_length}"] if measured.batches != shipped.batches else []
        words += ["exact loss"] if measured.model != shipped.model else []
        words += [f"batches of {chosen.batch_size}"] if chosen.batch_size else []
        words += [f"{chosen.threads} threads"] if chosen.threads > 1 else []
        words += ["default allocator"] if chosen.allocator == "default" else []
        words += [chosen.precision] if chosen.precision != "float32" else []
        return ", ".join(words) or "default"

    def _ask(self, name: str, job: dict[str, Any], allocator: str, when: str) -> Answer | None:
        """A contestant's answer to its job; None where it cannot do it."""
        print(f"{self.recipe} {when}: {name}", end=" ", file=sys.stderr, flush=True)
        script = HERE / "ours.py" if name == "turborec" else HERE / name / "measure.py"
        python = sys.executable if name == "turborec" else self.interpreters[name]
        environment = os.environ | (KEPT if allocator == "kept" else {})
        environment |= {"OMP_NUM_THREADS": str(self.chosen.threads), "CUDA_VISIBLE_DEVICES": ""}
        own = [os.environ["PYTHONPATH"]] if name == "turborec" and "PYTHONPATH" in os.environ else []
        environment["PYTHONPATH"] = os.pathsep.join([*own, str(HERE)])
        done = subprocess.run(
            [python, script], input=json.dumps(job), capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode:
            print(f"failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            return None
        answer: Answer = json.loads(done.stdout)
        if "unsupported" in answer:
            print(answer["unsupported"], file=sys.stderr)
            return None
        print(f"{answer['targets_per_cpu_second']:,.0f} targets a processor second", file=sys.stderr)
        return answer

    def _add_memory(self, given: dict[str, dict[str, Any]], answers: dict[str, list[Answer]]) -> None:
        """Replace the peaks of the rounds, which kept memory raises, by that of a short process with glibc's defaults."""
        for name, job in given.items():
            if answer := self._ask(name, job | {"seconds": 0.0}, "default", "memory"):
                for other in answers[name]:
                    other["peak_mib"] = answer["peak_mib"]

    def _write(self, name: str, rows: list[jobs.Row]) -> None:
        path = self.chosen.out / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
        for key, value in sorted(rows[0]["values"].items()):
            print(f"  {key:50} {value:,.3f}")


def interpreter(peer: str, home: Path) -> Path:
    """The peer's own interpreter, in an environment that holds what its requirements name."""
    requirements = HERE / peer / "requirements.txt"
    folder = home / "peers" / peer
    built, wanted = folder / "requirements.sha256", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not built.is_file() or built.read_text(encoding="utf-8") != wanted:
        print(f"building {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True, stdout=sys.stderr)
        built.write_text(wanted, encoding="utf-8")
    return python


def prepare(recipe: str, folder: Path) -> Data:
    """Prepare a recipe's data anew, and write its events with the places in the histories."""
    name = recipe.split("/")[0]
    source = [SOURCES[name]] if name in SOURCES else []
    began = time.perf_counter()
    found = turborec("data", "prepare", recipe, *source, "--home", str(folder), "--json")
    seconds = time.perf_counter() - began
    store = Path(json.loads(found)["store"])
    turborec("data", "export", str(store), "--out", str(folder / "exported.csv"))
    add_places(folder / "exported.csv", folder / "events.csv")
    return Data(store, folder / "events.csv", seconds)


def add_places(exported: Path, events: Path) -> None:
    """Copy the events, which lie user by user and in order, with the place of each in its history instead of its time."""
    with exported.open(newline="", encoding="utf-8") as read, events.open("w", newline="", encoding="utf-8") as write:
        out, user, place = csv.writer(write), None, 0
        out.writerow(("user", "item", "place", "part"))
        for row in csv.DictReader(read):
            place = place + 1 if row["user"] == user else 0
            user = row["user"]
            out.writerow((user, row["item"], place, row["part"]))


def turborec(*command: str) -> str:
    """What a command of turborec's writes to standard output."""
    return subprocess.run([sys.executable, "-m", "turborec", *command], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
