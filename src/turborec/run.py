"""A run, from store to result: data, models, engine and evaluation, and the folder that holds what came of them.

A run folder holds recipe.yaml, environment.json, data.json, model.json, status.json, metrics.jsonl, log.txt, checkpoints/
and evaluation/; of a model of texts also tokenizer.json.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from turborec import base, baseline, preflight, stores
from turborec.assembly import Run, anchor, assemble, measure, parameters, whole
from turborec.contract import Counted, Model
from turborec.data.batch import PairBatch
from turborec.data.schema import BY_PLACE
from turborec.data.store import Part
from turborec.engine import checkpoint, hardware, log, world
from turborec.engine.interrupt import interruptible, leaving_at_once
from turborec.engine.lock import lock
from turborec.engine.trackers import KINDS, Tracking, remembered
from turborec.errors import InterruptedRunError, UserError
from turborec.evaluate import Result
from turborec.files import write_whole
from turborec.nn.modality import Modalities
from turborec.nn.scan_loops import ran
from turborec.nn.ssm import lowered
from turborec.recipe import differences, dump, read
from turborec.recipes import AnyRecipe, from_tree, load
from turborec.stores import Places
from turborec.training import Watch, fit, load_best

logger = logging.getLogger("turborec")

MODEL = "model.json"
"""In a run folder: how large its model is."""

TOKENIZER = "tokenizer.json"
"""In a run folder of a model of texts: what cut them into tokens. Another run finds it by the folder."""

TRIAL = "trial.json"
"""In the folder of a run that is one of a search: its test part stays closed."""


def train(
    recipe: AnyRecipe,
    folder: Path,
    places: Places,
    device: str = "auto",
    steps: int | None = None,
    tracking: Tracking | None = None,
    watch: Watch | None = None,
) -> tuple[Run, dict[str, Result]]:
    """Carry out the run in `folder`, or go on with it: the run, and the test results of its model and of the anchors.

    `steps` limits the steps of an epoch, for a trial. `tracking` names who else is told the metrics; where it is None,
    those who were told before. A training that somebody watches is one of many, and its test part stays closed.
    """
    base.require_given(recipe)
    if watch is None:
        _refuse_trial(folder)
    tracking = tracking or remembered(folder)
    if tracking:
        tracking.require()
    hardware.keep_freed_memory()

    def learn(run: Run) -> None:
        _preflight(run)
        with interruptible() as interruption:
            fit(run, steps, interruption, tracking, watch)

    return carry_out(recipe, folder, places, device, learn, tested=watch is None)


def carry_out(
    recipe: AnyRecipe, folder: Path, places: Places, device: str, learn: Callable[[Run], None], tested: bool = True
) -> tuple[Run, dict[str, Result]]:
    """Hold the run's folder, open its data, let its model `learn` and evaluate it; the folder says how that ended."""
    with _held(folder):
        if world.leads():
            _claim(folder, recipe)
            if is_finished(folder):
                logger.info(f"The run in {folder} is finished: nothing is left to train, its results are computed again")
            log.write_status(folder, "running")
            if start := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
                logger.warning(f"Start {start + 1}: a process of the one before failed")
            checkpoint.sweep(folder / "checkpoints")
        world.wait()
        try:
            with leaving_at_once():
                run = _open(folder, recipe, places, device)
                if world.leads():
                    _describe(run)
                before = ran.copy()
                learn(run)
                if proof := ran - before:
                    told = ", ".join(f"{count:,} by {name}" for name, count in sorted(proof.items()))
                    logger.info(f"Recurrences computed so far, forward and backward: {told}")
                run = replace(run, model=whole(run))
                results = evaluate(run, "test") if tested else {}
                if tested and world.leads():
                    baseline.tell_after(run, results[run.recipe.model.kind])
        except (InterruptedRunError, KeyboardInterrupt) as error:
            code = error.code if isinstance(error, InterruptedRunError) else 130
            _write_status(folder, "interrupted", str(error), code)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(f"Stopped. Go on with: turborec train --resume {folder}") from error
            raise
        except BaseException as error:
            _write_status(folder, "failed", f"{type(error).__name__}: {error}", 1)
            raise
        _write_status(folder, "finished")
    return run, results


def _refuse_trial(folder: Path) -> None:
    if (folder / TRIAL).is_file():
        raise UserError(
            f"{folder} is a trial of a search, whose test part stays closed: go on with that search, or train its best.yaml."
        )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run folder for this run alone, and its log; of several processes the leader holds both, the others tell warnings."""
    if not world.leads():
        with log.logging_to(None, logging.WARNING):
            yield
        return
    # Of many trials the log tells in their folders, and whoever searches tells in a line each what came of them.
    told = logging.ERROR if (folder / TRIAL).is_file() else logging.INFO
    with leaving_at_once(), lock(folder), log.logging_to(None, told), log.logging_to(folder):
        yield


def _write_status(folder: Path, state: log.Status, reason: str = "", code: int = 0) -> None:
    """The leader's word, or that of another process that fails while the leader has not said why."""
    if world.leads():
        log.write_status(folder, state, reason, code)
    elif state == "failed" and log.state_of(folder) == "running":
        log.write_status(folder, state, f"{reason} (process {world.rank()})", code)


def reopen(folder: Path, places: Places, device: str = "auto", recipe: AnyRecipe | None = None) -> Run:
    """A run whose model holds the weights that validation chose, ready to evaluate and to recommend.

    `recipe`: its own, but for what changes no weight that it has learnt.
    """
    recipe = recipe or recipe_of(folder)
    # A training must have the kernels that it names; its weights are good on any machine.
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"kernels": "auto"})})
    run = _open(folder, recipe, places, device)
    newest = checkpoint.load_latest(run.checkpoints)
    if newest is None or (newest.state["best_step"] is None and not isinstance(run.model, Counted)):
        raise UserError(f"{folder} has no validated weights yet. `turborec train --resume {folder}` goes on with it.")
    load_best(run, newest)
    return run


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` came to its end."""
    return log.state_of(folder) == "finished"


def recipe_of(folder: Path) -> AnyRecipe:
    """The resolved recipe that a run folder carries."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no recipe.yaml.")
    return from_tree(read(path), str(path))


def _open(folder: Path, recipe: AnyRecipe, places: Places, device: str) -> Run:
    hardware.device_of(device)  # a device that cannot be used is known before any data is prepared
    store = stores.of_run(folder, recipe, places)
    return Run(**vars(assemble(_with_own_words(recipe, folder), store, device)), folder=folder)


def _with_own_words(recipe: AnyRecipe, folder: Path) -> AnyRecipe:
    """The recipe, whose tokenizer, if it is a given one, is the one that lies in the run's folder: it may be gone elsewhere."""
    texts = getattr(recipe.model, "texts", None)
    if texts is None or texts.tokenizer == "trained" or not (folder / TOKENIZER).is_file():
        return recipe
    own = texts.model_copy(update={"tokenizer": str(folder / TOKENIZER)})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"texts": own})})


def _claim(folder: Path, recipe: AnyRecipe) -> None:
    """Write the resolved recipe, and refuse a folder that holds a run of another one."""
    text, path = dump(recipe), folder / "recipe.yaml"
    # A start that failed before its first step leaves nothing worth keeping.
    begun = (folder / "metrics.jsonl").is_file() or any((folder / name).is_dir() for name in ("checkpoints", "evaluation"))
    # Read again, so that a setting which was not there when the run began has its default on both sides.
    if begun and path.is_file() and dump(before := recipe_of(folder)) != text:
        told = "\n".join(f"  {line}" for line in differences(before.model_dump(mode="json"), recipe.model_dump(mode="json")))
        raise UserError(f"{folder} holds a run of another recipe. Give this one a folder of its own. They differ in\n{told}")
    if not begun and path.is_file() and path.read_text(encoding="utf-8") != text:
        for name in ("data.json", "environment.json", MODEL, TOKENIZER):
            (folder / name).unlink(missing_ok=True)
    if not begun or not path.is_file():
        write_whole(path, text)


def _describe(run: Run) -> None:
    """Write down, when a run begins, on what data and where; the log has every beginning."""
    facts = {"store": str(run.store.folder.resolve()), "key": run.store.key}
    for name, content in (("data.json", facts), ("environment.json", log.environment())):
        if not (run.folder / name).is_file():
            write_whole(run.folder / name, json.dumps(content, indent=1))
    if (texts := getattr(run.model, "texts", None)) is not None and not (run.folder / TOKENIZER).is_file():
        write_whole(run.folder / TOKENIZER, texts.tokenizer)
    counts = run.store.card["counts"]
    logger.info(f"Data: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events")
    if isinstance(run.model, Counted):
        return
    sizes = parameters(run.model, run.store.num_items)
    if not (run.folder / MODEL).is_file():
        write_whole(run.folder / MODEL, json.dumps({"kind": run.recipe.model.kind, "parameters": vars(sizes)}, indent=1))
    adapted = f", {sizes.trained:,} ({sizes.trained / sizes.total:.2%}) of them trained" * (run.recipe.adapters is not None)
    adapted += f" beside {base.given(run.recipe)}" * (run.recipe.adapters is not None)
    for tables in run.model.modules():
        if isinstance(tables, Modalities):
            logger.info(f"Features: {tables.told()}")
    dtype = str(hardware.compute_dtype(run.recipe.train.precision, run.device)).removeprefix("torch.")
    logger.info(
        f"Model: {run.recipe.model.kind} with {sizes.total:,} parameters, {sizes.body:,} in the body and {sizes.tables:,} in "
        f"tables{adapted}; products in {dtype} on {run.device}"
    )
    if settings := run.recipe.train.told():
        logger.info(f"Step: {settings}")
    if told := lowered(run.model):
        logger.info(told)


def _preflight(run: Run) -> None:
    """Look at what can go wrong before it does, and write down what was found."""
    if world.leads():
        run.checkpoints.mkdir(exist_ok=True)  # where a start sweeps up what another that was killed has left
    found = preflight.checks(run, run.checkpoints)
    if world.leads():
        write_whole(run.folder / "preflight.json", json.dumps([vars(check) for check in found], indent=1))
        passed = ", ".join(check.name for check in found if check.state == "ok")
        logger.info(f"Preflight: {passed} as they should be")
        for check in found:
            if check.state == "note":
                logger.info(f"Preflight, {check.name}: {check.says}")
    preflight.require(found)


def anchors(run: Run) -> tuple[str, ...]:
    """The counted models that every model must beat.

    Where models read pairs and nothing but the place in the files orders events, Markov would learn how files are written.
    """
    if not run.recipe.anchors:
        return ()
    unordered = run.recipe.model.batch is PairBatch and str(run.store.card.get("tie_rule")).endswith(BY_PLACE)
    return ("popularity",) if unordered else ("markov", "popularity")


def evaluate(run: Run, part: Part) -> dict[str, Result]:
    """Rank a part's targets by the model and by the anchors it must beat, and write down what came of it."""
    if part == "test":
        _refuse_trial(run.folder)
    models: dict[str, Model] = {run.recipe.model.kind: run.model}
    for kind in anchors(run):
        if kind not in models:
            models[kind] = anchor(run, kind)
    results = {}
    for name, model in models.items():
        results[name] = measure(run, part, model)
        if world.leads():
            results[name].write(run.folder / "evaluation" / part / name, run.store)
    own, *others = ((name, result.values.get(run.recipe.select)) for name, result in results.items())
    for name, value in others if world.leads() else ():
        if own[1] is not None and value is not None and own[1] < value:
            logger.warning(
                f"{own[0]} ranks worse than {name}, which needs no training ({run.recipe.select} {own[1]:.4f} against "
                f"{value:.4f}): train it longer, or with other settings."
            )
    return results


def main() -> None:
    """`python -m turborec.run RECIPE [A.B=VALUE]... --store STORE --out RUN`: train where only torch is installed.

    Prints the results as one JSON object. Started again with the same recipe and folder it goes on.
    """
    parser = argparse.ArgumentParser(prog="python -m turborec.run", description=main.__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="A.B=VALUE")
    parser.add_argument("--store", type=Path, required=True, help="a prepared store")
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--track", action="append", default=[], help=f"also tell a tracker: {', '.join(KINDS)}")
    parser.add_argument("--project", default=Tracking.project, help="the trackers' project")
    chosen = parser.parse_args()
    tracking = Tracking(tuple(chosen.track), chosen.project) if chosen.track else None
    places = Places(home=chosen.store.parent, store=chosen.store)
    try:
        with world.joined():
            _, results = train(load(chosen.recipe, chosen.overrides), chosen.out, places, chosen.device, tracking=tracking)
            if not world.leads():
                return
    except UserError as error:
        sys.exit(f"turborec: {error}")
    print(json.dumps({name: {"masked": result.masked, "kept": result.kept} for name, result in results.items()}))


if __name__ == "__main__":
    main()
