"""A run, from store to result: the one file that sees data, models, engine and evaluation side by side.

A run folder holds recipe.yaml, environment.json, status.json, metrics.jsonl, log.txt, checkpoints/ and evaluation/.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from turborec import stores
from turborec.contract import Counted, Model
from turborec.data.loader import Epoch, TrainingBatches, evaluation_batches
from turborec.data.store import Part, Store
from turborec.engine import checkpoint, hardware, log, loop
from turborec.engine.interrupt import Interruption, interruptible
from turborec.engine.state import Position, TrainState
from turborec.engine.stopping import StopperState, still_rising
from turborec.engine.trackers import KINDS, Tracking, remembered
from turborec.errors import InterruptedRunError, UserError
from turborec.evaluate import Evaluation, Result, evaluate
from turborec.files import write_whole
from turborec.progress import Pace, task
from turborec.recipe import dump, open_kind, read
from turborec.recipes import AnyRecipe, from_tree, load
from turborec.stores import Places

logger = logging.getLogger("turborec")


@dataclass(frozen=True)
class Run:
    """A training under way or done: what every step of it needs."""

    folder: Path
    recipe: AnyRecipe
    store: Store
    model: Model
    device: torch.device

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"


def train(
    recipe: AnyRecipe,
    folder: Path,
    places: Places,
    device: str = "auto",
    steps: int | None = None,
    tracking: Tracking | None = None,
) -> tuple[Run, dict[str, Result]]:
    """Carry out the run in `folder`, or go on with it: the run, and the test results of its model and of the anchors.

    `steps` limits the steps of an epoch, for a trial. `tracking` names who else is told the metrics; where it is None,
    those who were told before.
    """
    tracking = tracking or remembered(folder)
    if tracking:
        tracking.require()
    hardware.keep_freed_memory()
    with checkpoint.lock(folder), log.logging_to(None), log.logging_to(folder):
        if is_finished(folder):
            logger.info(f"The run in {folder} is finished: nothing is left to train, its results are computed again")
        _claim(folder, recipe)
        log.write_status(folder, "running")
        checkpoint.sweep(folder / "checkpoints")
        try:
            run = _open(folder, recipe, places, device)
            _describe(run)
            with interruptible() as interruption:
                _fit(run, steps, interruption, tracking)
            results = _compare(run)
        except (InterruptedRunError, KeyboardInterrupt) as error:
            log.write_status(folder, "interrupted", str(error))
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(f"Stopped. Go on with: turborec train --resume {folder}") from error
            raise
        except BaseException as error:
            log.write_status(folder, "failed", f"{type(error).__name__}: {error}")
            raise
        log.write_status(folder, "finished")
    return run, results


def reopen(folder: Path, places: Places, device: str = "auto") -> Run:
    """A run whose model holds the weights that validation chose, ready to evaluate and to recommend."""
    run = _open(folder, recipe_of(folder), places, device)
    newest = checkpoint.load_latest(run.checkpoints)
    if newest is None or (newest.state["best_step"] is None and not isinstance(run.model, Counted)):
        raise UserError(f"{folder} has no validated weights yet. `turborec train --resume {folder}` goes on with it.")
    _load_best(run, newest)
    return run


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` came to its end."""
    try:
        return bool(json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def recipe_of(folder: Path) -> AnyRecipe:
    """The resolved recipe that a run folder carries."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no recipe.yaml.")
    return from_tree(read(path), str(path))


def measure(run: Run, part: Part, model: Model | None = None, config: Evaluation | None = None) -> Result:
    """Rank the part's targets by the run's model, or another one on the same data, as the recipe or `config` says."""
    model = run.model if model is None else model
    model.eval()
    config, shown = config or run.recipe.evaluation, run.recipe.batches
    batches = evaluation_batches(run.store, part, shown, config.users(run.store, part))
    device = torch.device("cpu") if isinstance(model, Counted) else run.device
    with torch.no_grad():
        result = evaluate(model.scorer(), batches, run.store, part, config, device, shown.max_length)
    windows = shown.model_dump(include={"max_length", "coverage", "overlap", "seams"})
    return replace(result, card={**result.card, "training_windows": windows})


def _open(folder: Path, recipe: AnyRecipe, places: Places, device: str) -> Run:
    chosen, store = hardware.device_of(device), stores.of_run(folder, recipe, places)
    torch.manual_seed(recipe.seed)  # the one draw from a global generator: the initial weights
    model = recipe.model.build(stores.spec_of(store, recipe))
    if isinstance(model, Counted):
        chosen = torch.device("cpu")  # counting is sparse work in float64, nothing for an accelerator
    return Run(folder, recipe, store, model.to(chosen), chosen)


def _claim(folder: Path, recipe: AnyRecipe) -> None:
    """Write the resolved recipe, and refuse a folder that holds a run of another one."""
    text, path = dump(recipe), folder / "recipe.yaml"
    begun = (folder / "data.json").is_file()  # a start that failed before it had data leaves nothing worth keeping
    if begun and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds a run of another recipe. Give this one a folder of its own.")
    if not begun or not path.is_file():
        write_whole(path, text)


def _describe(run: Run) -> None:
    """Write down, when a run begins, on what data and where; the log has every beginning."""
    facts = {"store": str(run.store.folder.resolve()), "key": run.store.key}
    for name, content in (("data.json", facts), ("environment.json", log.environment())):
        if not (run.folder / name).is_file():
            write_whole(run.folder / name, json.dumps(content, indent=1))
    counts = run.store.card["counts"]
    logger.info(f"Data: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events")
    parameters = sum(p.numel() for p in run.model.parameters())
    dtype = str(hardware.compute_dtype(run.recipe.train.precision, run.device)).removeprefix("torch.")
    logger.info(f"Model: {run.recipe.model.kind} with {parameters:,} parameters, products in {dtype} on {run.device}")


@dataclass(frozen=True)
class _Job:
    """What the epochs of one process share."""

    run: Run
    batches: TrainingBatches
    metrics: log.MetricsLog
    interruption: Interruption
    steps: int | None  # of an epoch at most
    pace: Pace  # over optimizer steps


def _fit(run: Run, steps: int | None, interruption: Interruption, tracking: Tracking | None) -> None:
    """Leave the weights that validation chooses in the run's model, from the newest checkpoint on if there is one."""
    saved = checkpoint.load_latest(run.checkpoints)
    if isinstance(run.model, Counted):
        run.model.count(run.store.training())
        checkpoint.save(run.checkpoints, 0, {"model": run.model.state_dict()}, {"best_step": None})
        return
    state = loop.start(run.model, run.recipe.stages[saved.state["position"]["stage"] if saved else 0], run.device)
    if saved:
        state.restore(saved.tensors, saved.state)
        logger.info("Going on after step %d", state.position.global_step)
    batches = TrainingBatches(run.store, run.recipe.batches, run.recipe.seed)
    with log.MetricsLog(run.folder, state.position.global_step, tracking) as metrics:
        job = _Job(run, batches, metrics, interruption, steps, Pace(state.position.global_step))
        for number, stage in enumerate(run.recipe.stages):
            if number > state.position.stage:
                state = _next_stage(run, state, number)
            stopping = run.recipe.stopping
            while state.position.stage == number and state.position.epoch < stage.epochs:
                if stopping.should_stop(state.stopper):
                    logger.info("No gain for %d epochs: stopping early", stopping.patience_epochs)
                    break
                _epoch(job, state)
    _warn_if_rising(run, state)
    newest = checkpoint.load_latest(run.checkpoints)
    if newest is not None:
        _load_best(run, newest)


def _warn_if_rising(run: Run, state: TrainState) -> None:
    """A model that would have learned more is no measure of what it can do, so the run says so."""
    epochs = [record for record in log.read_metrics(run.folder) if record["kind"] == "epoch"][-state.position.epoch :]
    if still_rising([record[run.recipe.select] or 0.0 for record in epochs]):
        logger.warning(
            f"Validation {run.recipe.select} was still rising when the training ended: more epochs "
            f"({'train' if not state.position.stage else f'then.{state.position.stage - 1}'}.epochs) would give a better model."
        )


def _epoch(job: _Job, state: TrainState) -> None:
    """Train for the rest of an epoch, validate, and write a checkpoint."""
    run, position = job.run, state.position
    stage = run.recipe.stages[position.stage]
    number = position.epoch + sum(s.epochs for s in run.recipe.stages[: position.stage])
    plan: Epoch = job.batches.epoch(number)
    steps = len(plan) if job.steps is None else min(len(plan), job.steps)
    if not steps:
        raise UserError("There is nothing to train on: no user has two events before the validation part.")
    run.model.begin_epoch(number, torch.Generator().manual_seed(plan.key))
    began = saved = time.monotonic()
    before, label = position.targets, f"Epoch {position.epoch + 1}/{stage.epochs}"
    epochs = sum(s.epochs for s in run.recipe.stages)
    if not position.global_step:
        logger.info(f"{steps} steps an epoch, {plan.targets:,} targets, {plan.fill:.1%} of the positions filled")
    with task(label, plan.targets, "targets") as advance:
        for record in loop.fit(state, _First(plan, steps), stage, run.device):
            left = job.pace.left(position.global_step, steps * (epochs - number) - position.step)
            advance(record.targets, f"loss {record.loss:.4f}, all epochs {left}")
            facts = {"gradient_norm": record.gradient_norm, "lr": record.lr, "epoch": position.epoch + 1}
            job.metrics.write("train", position.global_step, {**record.losses, **facts})
            if position.step == steps:
                break  # the end of the epoch validates first and saves then, so that no record of it comes twice
            if job.interruption.signal or time.monotonic() - saved > 60 * run.recipe.checkpoints.minutes:
                _save(run, state)
                saved = time.monotonic()
            _heed(job.interruption, run, position)
    speed = (position.targets - before) / (time.monotonic() - began)
    values: dict[str, float] = {
        "loss": position.loss / max(1, position.targets),
        "fill": plan.fill,
        "targets_per_second": speed,
    }
    position.epoch, position.step, position.loss, position.targets = position.epoch + 1, 0, 0.0, 0
    _validate(run, state, values, job.metrics)
    logger.info(
        f"{label}: step {position.global_step:,} of about {epochs * steps:,} ({(number + 1) / epochs:.0%}), "
        f"loss {values['loss']:.4f}, validation {run.recipe.select} {values[run.recipe.select]:.4f} "
        f"(best {state.stopper.best or 0:.4f} in epoch {state.stopper.best_epoch}), {speed:,.0f} targets/s"
    )
    _save(run, state)
    _heed(job.interruption, run, position)


def _heed(interruption: Interruption, run: Run, position: Position) -> None:
    """End the run if that was asked for; what there is has just been saved."""
    if interruption.signal:
        raise InterruptedRunError(
            f"Stopped by {interruption.signal.name} after step {position.global_step:,}; everything is saved. "
            f"Go on with: turborec train --resume {run.folder}"
        )


def _validate(run: Run, state: TrainState, values: dict[str, float], metrics: log.MetricsLog) -> None:
    """Rank the validation targets with the averaged weights, where there are any, and remember whether it is the best."""
    with state.averaged():
        result = measure(run, "validation", config=run.recipe.evaluation.without_lists())
    values.update(result.values)
    epoch = state.position.epoch
    state.stopper = run.recipe.stopping.update(state.stopper, epoch, values[run.recipe.select])
    if state.stopper.best_epoch == epoch:
        state.best_step = state.position.global_step
    metrics.write("epoch", state.position.global_step, {"epoch": epoch, **values})


def _save(run: Run, state: TrainState) -> None:
    tensors, facts = state.capture()
    checkpoint.save(run.checkpoints, state.position.global_step, tensors, facts)
    # The newest is protected too: past a damaged checkpoint of a later step it is not the one of the highest number.
    needed = {state.position.global_step} | ({state.best_step} if state.best_step is not None else set())
    checkpoint.keep(run.checkpoints, run.recipe.checkpoints.keep, needed)


def _next_stage(run: Run, state: TrainState, number: int) -> TrainState:
    """The first state of stage `number`, from the weights of the one before as the recipe says."""
    stage = run.recipe.stages[number]
    newest = checkpoint.load_latest(run.checkpoints)
    if stage.start == "best" and newest is not None:
        _load_best(run, newest)
    fresh = loop.start(run.model, stage, run.device)
    if stage.keep_optimizer:
        # What the optimizer remembers is kept; its settings are the new stage's.
        kept = state.optimizer.state_dict()["state"]
        fresh.optimizer.load_state_dict({**fresh.optimizer.state_dict(), "state": kept})
    fresh.position = Position(stage=number, global_step=state.position.global_step)
    fresh.stopper = StopperState()
    logger.info("Stage %d of %d begins", number + 1, len(run.recipe.stages))
    return fresh


def _load_best(run: Run, newest: checkpoint.Checkpoint) -> None:
    """Put the weights of the best epoch (the averaged ones, where there are any) into the model."""
    step = newest.state["best_step"]
    best = newest
    if step not in (None, newest.step):
        try:
            best = checkpoint.load(run.checkpoints / f"step_{step:06d}")
        except checkpoint.DamagedCheckpointError as error:
            logger.warning(
                f"{error} Its weights, the best by validation, are lost: those of step {newest.step} take their place."
            )
    run.model.load_state_dict({**best.tensors["model"], **best.tensors.get("average", {})}, strict=True)


def _compare(run: Run) -> dict[str, Result]:
    """The one opening of the test split, for the model and for the anchors it must beat."""
    models: dict[str, Model] = {run.recipe.model.kind: run.model}
    for kind in ("markov", "popularity") if run.recipe.anchors else ():
        if kind not in models:
            models[kind] = _anchor(run, kind)
    results = {}
    for name, model in models.items():
        results[name] = measure(run, "test", model)
        results[name].write(run.folder / "evaluation" / "test" / name, run.store)
    return results


def _anchor(run: Run, kind: str) -> Model:
    config: Any = open_kind("turborec.models", {"kind": kind}, "anchors", "turborec")()
    model: Counted = config.build(stores.spec_of(run.store, run.recipe))
    model.count(run.store.training())
    return model


class _First:
    """The first steps of an epoch, for a trial."""

    def __init__(self, plan: Epoch, steps: int) -> None:
        self._plan, self._steps = plan, steps
        self.batch = plan.batch

    def __len__(self) -> int:
        return self._steps


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
        _, results = train(load(chosen.recipe, chosen.overrides), chosen.out, places, chosen.device, tracking=tracking)
    except UserError as error:
        sys.exit(f"turborec: {error}")
    print(json.dumps({name: {"masked": result.masked, "kept": result.kept} for name, result in results.items()}))


if __name__ == "__main__":
    main()
