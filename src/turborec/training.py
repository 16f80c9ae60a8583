"""The training of a run: stages of epochs, each one validated and saved."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from turborec import base, baseline
from turborec.assembly import Run, measure
from turborec.contract import Counted
from turborec.data.loader import Epoch, Some, TrainingBatches
from turborec.data.pairs import PairBatches
from turborec.engine import checkpoint, hardware, log, loop, monitor, world
from turborec.engine.interrupt import Interruption, heed
from turborec.engine.loop import Stage
from turborec.engine.sharding import load_whole
from turborec.engine.state import Position, Tensors, TrainState
from turborec.engine.stopping import EarlyStopping, StopperState, still_rising
from turborec.engine.trackers import Tracking
from turborec.errors import UserError
from turborec.progress import Pace, task
from turborec.stores import training_batches

logger = logging.getLogger("turborec")

Watch = Callable[[int, Mapping[str, float]], None]
"""(epochs of all stages so far, what the last one came to)."""

WORTH = 0.25
"""Share of a step that the exchange between processes may take before the run says that it does not pay."""


@dataclass(frozen=True)
class _Job:
    """What the epochs of one process share."""

    run: Run
    batches: TrainingBatches | PairBatches
    metrics: log.MetricsLog | None  # None where another process keeps it
    interruption: Interruption
    steps: int | None  # of an epoch at most
    watch: Watch | None
    pace: Pace  # over optimizer steps


def fit(run: Run, steps: int | None, interruption: Interruption, tracking: Tracking | None, watch: Watch | None = None) -> None:
    """Leave the weights that validation chooses in the run's model, from the newest checkpoint on if there is one.

    `watch` is told what each epoch came to, when it is saved, and may raise to end the training.
    """
    if isinstance(run.model, Counted):
        run.model.count(run.store.training())
        if world.leads():
            checkpoint.save(run.checkpoints, 0, {"model": run.model.state_dict()}, {"best_step": None})
        world.wait()
        return
    state = _begin(run, watched=watch is not None)
    batches = training_batches(run.recipe, run.store, (world.rank(), world.size()))
    with _metrics(run, state, tracking) as metrics:
        job = _Job(run, batches, metrics, interruption, steps, watch, Pace(state.position.global_step))
        for number, stage in enumerate(run.recipe.stages):
            if number > state.position.stage:
                state = _next_stage(run, state, number)
            stated = (run.recipe.train, *run.recipe.then)[number]
            if told := stated.scaling.told(stated.optimizer, run.recipe.batches.total(world.size())):
                logger.info(told)
            stopping = _stopping(run, stage)
            while state.position.stage == number and state.position.epoch < stage.epochs:
                if stopping.should_stop(state.stopper):
                    logger.info("No gain for %d epochs: stopping early", stopping.patience_epochs)
                    break
                _epoch(job, state)
    if world.leads():
        _warn_of_selection(run, state)
    newest = _newest(run)
    if newest is not None:
        load_best(run, newest)


def _begin(run: Run, watched: bool) -> TrainState:
    """The state of the newest checkpoint, whose tensors are let go, or that of a training which begins."""
    saved = _newest(run)
    state = loop.start(run.model, run.recipe.stages[saved.state["position"]["stage"] if saved else 0], run.device)
    if saved is None and run.recipe.adapters is None:  # beside which the model has begun already
        run.model.begin()
    if saved is None and run.recipe.base is not None and run.recipe.adapters is None:
        base.begin(run.model, run.recipe, run.store)
        logger.info("Beginning with the weights of %s", run.recipe.base)
    if saved is None and not watched and baseline.is_wanted(run.recipe):
        baseline.measure_before(run)
    if saved:
        _refuse_other_batches(run, saved.state.get("tokens", run.recipe.batches.tokens))
        state.restore(saved.tensors, saved.state)
        logger.info("Going on after step %d", state.position.global_step)
    return state


def adopt(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Take weights that were learnt elsewhere, and write them down as those of a training that is over."""
    run.model.load_state_dict(dict(weights), strict=True)
    state = loop.start(run.model, run.recipe.stages[-1], run.device)
    state.position = Position(stage=len(run.recipe.stages) - 1, epoch=run.recipe.stages[-1].epochs)
    state.best_step = 0
    _save(run, state)


def _newest(run: Run) -> checkpoint.Checkpoint | None:
    """The newest good checkpoint, if any: all processes go on from the one that the leader could read."""
    saved = checkpoint.load_latest(run.checkpoints) if world.leads() else None
    name = world.told(saved.path.name if saved else None)
    return saved if world.leads() or name is None else checkpoint.load(run.checkpoints / name)


def _refuse_other_batches(run: Run, tokens: int) -> None:
    """A position within an epoch means nothing where its batches are others."""
    each = run.recipe.batches.tokens
    if (now := run.recipe.batches.total(world.size())) != tokens:
        raise UserError(
            f"The run in {run.folder} has batches of {tokens:,} tokens, and {each:,} for each of {world.size()} would make it "
            f"{now:,}: go on with {tokens // each} processes."
        )


def _warn_of_selection(run: Run, state: TrainState) -> None:
    """A model that would have learned more, or that nothing chose, is no measure of what it can do, so the run says so."""
    epochs = [record for record in log.read_metrics(run.folder) if record["kind"] == "epoch"][-state.position.epoch :]
    values = [record[run.recipe.select] or 0.0 for record in epochs if run.recipe.select in record]
    if len(values) > 1 and not any(values):
        new = " or to rank new items alone (evaluation.candidates=unseen)" * (run.recipe.evaluation.candidates == "catalogue")
        logger.warning(
            f"Validation {run.recipe.select} was always 0 and so chose nothing: the first epoch's weights are kept. It may "
            f"help to select by a metric that sees every place (select=catalogue_auc){new}."
        )
    if still_rising(values):
        more = f"more epochs ({'train' if not state.position.stage else f'then.{state.position.stage - 1}'}.epochs)"
        told = f"was still rising when the training ended: {more} would give a better model."
        once = f"was measured once, so nobody knows whether {more} would give a better model."
        logger.warning(f"Validation {run.recipe.select} {told if len(values) > 1 else once}")


def _epoch(job: _Job, state: TrainState) -> None:
    """Train for the rest of an epoch, validate where that is due, and write a checkpoint."""
    run, position = job.run, state.position
    stage = run.recipe.stages[position.stage]
    number = position.epoch + sum(s.epochs for s in run.recipe.stages[: position.stage])
    plan: Epoch = job.batches.epoch(number)
    steps = len(plan) if job.steps is None else min(len(plan), job.steps)
    if not steps:
        raise UserError("There is nothing to train on: no user has two events before the validation part.")
    began = saved = time.monotonic()
    before, label = position.targets, f"Epoch {position.epoch + 1}/{stage.epochs}"
    epochs = sum(s.epochs for s in run.recipe.stages)
    if not position.global_step:
        logger.info(f"{steps} steps an epoch, {plan.targets:,} events to learn from, {plan.fill:.1%} of the positions filled")
    watch, clock = monitor.Monitor(run.device), monitor.Clock()
    with task(label, plan.targets, "events") as advance:
        for record in loop.fit(state, Some(plan, range(steps)), stage, run.device):
            left = job.pace.left(position.global_step, steps * (epochs - number) - position.step)
            world.passed(position.global_step)
            advance(record.asked, f"loss {record.loss:.4f}, all epochs {left}")
            watch.add(record.waited, record.targets)
            clock.note("preparing", record.prepared)
            facts = {"gradient_norm": record.gradient_norm, "lr": record.lr, "epoch": position.epoch + 1}
            if job.metrics:
                job.metrics.write("train", position.global_step, {**record.losses, **facts})
            if position.step == steps:
                break  # the end of the epoch validates first and saves then, so that no record of it comes twice
            if monitor.due(position.step, steps):
                _tell_usage(job, state, watch, f"{label}, step {position.step:,} of {steps:,}")
            # A signal may have reached one process alone, and clocks differ: all of them stop and save after the same step.
            late = world.leads() and time.monotonic() - saved > 60 * run.recipe.checkpoints.minutes
            signal, due = world.greatest([int(job.interruption.signal or 0), int(late)])
            if signal or due:
                _tell_time(job, state, clock.read("training"), position.epoch + 1)
                _save(run, state)
                saved = time.monotonic()
            heed(int(signal), position.global_step, _to_go_on(run))
    _warn_if_small(run, _tell_usage(job, state, watch, label))
    values: dict[str, float] = {
        "loss": position.loss / max(1, position.targets),
        "fill": plan.fill,
        "targets_per_second": (position.targets - before) / (time.monotonic() - began),
    }
    position.epoch, position.step, position.loss, position.targets = position.epoch + 1, 0, 0.0, 0
    told = _end(job, state, values, clock)
    logger.info(
        f"{label}: step {position.global_step:,} of about {position.global_step + (epochs - number - 1) * steps:,} "
        f"({(number + 1) / epochs:.0%}), "
        f"loss {values['loss']:.4f}, {told}, {values['targets_per_second']:,.0f} targets/s"
    )
    _save(run, state)
    if job.watch is not None:
        job.watch(number + 1, values)
    if stage.collect_garbage:
        collecting = time.monotonic()
        hardware.collect_garbage(run.device)
        spent = time.monotonic() - collecting
        logger.info(f"{label}: garbage collected in {spent:.2f} s ({spent / (collecting - began):.1%} of the epoch)")
    heed(int(world.greatest([int(job.interruption.signal or 0)])[0]), position.global_step, _to_go_on(run))


def _end(job: _Job, state: TrainState, values: dict[str, float], clock: monitor.Clock) -> str:
    """Validate where that is due, write down what the epoch came to and how long it took, and say how good it is."""
    run, position = job.run, state.position
    stopping, select, told = _stopping(run, run.recipe.stages[position.stage]), run.recipe.select, "not validated"
    spent = clock.read("training")
    if stopping.due(state.stopper, position.epoch, run.recipe.stages[position.stage].epochs):
        _validate(run, state, values)
        spent |= clock.read("validation")
        where = f"in epoch {state.stopper.best_epoch}" if state.stopper.best_epoch else "in the stage before"
        best = f"best {state.stopper.best or 0:.4f} {where}{_patience(stopping, state)}"
        told = f"validation {select} {values[select]:.4f} ({best})"
    _tell_time(job, state, spent, position.epoch)
    if job.metrics:
        job.metrics.write("epoch", position.global_step, {"stage": position.stage + 1, "epoch": position.epoch, **values})
    return told


def _tell_time(job: _Job, state: TrainState, spent: monitor.Usage, epoch: int) -> None:
    """Write down what a part of an epoch took, by the leading process: what is told of an epoch in parts adds up."""
    if job.metrics:
        held, stage = monitor.memory(job.run.device), state.position.stage + 1
        job.metrics.write(monitor.CLOCK, state.position.global_step, {**spent, **held, "stage": stage, "epoch": epoch})


def _tell_usage(job: _Job, state: TrainState, watch: monitor.Monitor, where: str) -> monitor.Usage:
    """Say and write down what the steps since the last time used, in all processes."""
    together, each = watch.read(state.shares.exchange_seconds() if world.size() > 1 else None)
    logger.info(f"{where}: {monitor.told(together, each)}")
    if job.metrics:
        stage, epoch = state.position.stage + 1, state.position.epoch + 1
        job.metrics.write(monitor.KIND, state.position.global_step, {**together, "stage": stage, "epoch": epoch})
    return together


def _warn_if_small(run: Run, used: monitor.Usage) -> None:
    """Where the exchange between processes takes much of an epoch, name the batches that would be worth it."""
    if (share := used.get("communication_share", 0.0)) > WORTH:
        logger.warning(
            "The processes' shares of a batch are too small to pay for their exchange: with "
            f"batches.tokens={round(run.recipe.batches.tokens * share / WORTH):,} they would, or use fewer processes."
        )


def _stopping(run: Run, stage: Stage) -> EarlyStopping:
    """When the stage is to stop."""
    own = {} if stage.patience_epochs is None else {"patience_epochs": stage.patience_epochs}
    return run.recipe.stopping.model_copy(update=own)


def _patience(stopping: EarlyStopping, state: TrainState) -> str:
    """How near the training is to being stopped early."""
    without, most = state.stopper.epoch - state.stopper.reference_epoch, stopping.patience_epochs
    return f"; {without} of {most} epochs without gain" if without and most else ""


def _metrics(run: Run, state: TrainState, tracking: Tracking | None) -> AbstractContextManager[log.MetricsLog | None]:
    """Where records are written to: of several processes the leader alone writes."""
    return log.MetricsLog(run.folder, state.position.global_step, tracking) if world.leads() else nullcontext()


def _to_go_on(run: Run) -> str:
    """The command that goes on with the run in as many processes."""
    begun = "train" if world.size() == 1 else f"launch local --processes {world.size()}"
    return f"turborec {begun} --resume {run.folder}"


def _validate(run: Run, state: TrainState, values: dict[str, float]) -> None:
    """Rank the validation targets with the averaged weights, where there are any, and remember whether it is the best."""
    with state.averaged():
        result = measure(run, "validation", config=run.recipe.evaluation.without_lists())
    values.update(result.values)
    epoch = state.position.epoch
    stopping = _stopping(run, run.recipe.stages[state.position.stage])
    state.stopper = stopping.update(state.stopper, epoch, values[run.recipe.select])
    if state.stopper.best_epoch == epoch:
        state.best_step = state.position.global_step


def _save(run: Run, state: TrainState) -> None:
    """Write a checkpoint; of several processes the leader does, and all go on when it is there."""
    tensors, facts = state.capture()  # of all: where each holds a part of the model, this brings it together
    if world.leads():
        _write(run, state, tensors, facts)
    world.wait()


def _write(run: Run, state: TrainState, tensors: Tensors, facts: dict[str, Any]) -> None:
    facts["tokens"] = run.recipe.batches.total(world.size())
    checkpoint.save(run.checkpoints, state.position.global_step, tensors, facts)
    # The newest is protected too: past a damaged checkpoint of a later step it is not the one of the highest number.
    needed = {state.position.global_step} | ({state.best_step} if state.best_step is not None else set())
    checkpoint.keep(run.checkpoints, run.recipe.checkpoints.keep, needed)


def _next_stage(run: Run, state: TrainState, number: int) -> TrainState:
    """The first state of stage `number`, from the weights of the one before as the recipe says."""
    stage = run.recipe.stages[number]
    newest = _newest(run)
    if stage.start == "best" and newest is not None:
        load_best(run, newest)
    fresh = loop.start(run.model, stage, run.device)
    if "optimizer" in stage.keep:
        # What the optimizer remembers is kept; its settings are the new stage's.
        kept = state.optimizer.state_dict()["state"]
        fresh.optimizer.load_state_dict({**fresh.optimizer.state_dict(), "state": kept})
    along = state.position.scheduled + state.position.epoch if "schedule" in stage.keep else 0
    fresh.position = Position(stage=number, global_step=state.position.global_step, scheduled=along)
    if "best" in stage.keep:
        fresh.stopper = StopperState(best=state.stopper.best, reference=state.stopper.best)
        fresh.best_step = state.best_step
    memory = "the optimizer's memory kept" if "optimizer" in stage.keep else "a fresh optimizer"
    logger.info(f"Stage {number + 1} of {len(run.recipe.stages)} begins with the {stage.start} weights and {memory}")
    return fresh


def load_best(run: Run, newest: checkpoint.Checkpoint) -> None:
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
    load_whole(run.model, {**best.tensors["model"], **best.tensors.get("average", {})})
