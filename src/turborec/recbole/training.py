"""A training of one of RecBole's models by turborec's engine, and its run folder.

recbole.json        the job           settings.json   all of RecBole's settings
metrics.jsonl, tensorboard/, log.txt, status.json, environment.json, checkpoints/ as in every run of turborec's
evaluation/<part>/  result.json and per_user.npz of the weights that validation chose
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turborec.data.store import Part
from turborec.engine import checkpoint, hardware, log, loop, world
from turborec.engine.interrupt import Interruption, heed, interruptible, leaving_at_once
from turborec.engine.lock import lock
from turborec.engine.loop import Stage
from turborec.engine.state import TrainState
from turborec.engine.stopping import EarlyStopping
from turborec.errors import InterruptedRunError, UserError
from turborec.evaluate import Result
from turborec.files import write_whole
from turborec.recbole import shims
from turborec.recbole.data import Epoch, Ranked, TrainingRows, ranked, training_rows
from turborec.recbole.evaluation import history_of, measure, metrics_of
from turborec.recbole.job import JOB, Job
from turborec.recbole.model import Adapted, coupled, stage_of

MINUTES = 10.0
"""Between checkpoints within an epoch."""

KEPT = 2
"""Checkpoints that are kept, beside the best one."""

logger = logging.getLogger("turborec")


@dataclass(frozen=True)
class Assembled:
    """A job with all that it names."""

    job: Job
    config: Any
    model: Adapted
    train: TrainingRows
    parts: dict[Part, Ranked]  # those that the split leaves rows to

    @property
    def stopping(self) -> EarlyStopping:
        """RecBole stops when more than `stopping_step` evaluations in a row were not the best."""
        return EarlyStopping(patience_epochs=(int(self.config["stopping_step"]) + 1) * max(1, int(self.config["eval_step"])))

    def measured(self, part: Part) -> Result:
        """How well the model ranks a part."""
        self.model.eval()
        return measure(self.model.scorer(), self.parts[part], self.config, self.job.ranking, part)


@contextmanager
def assembled(job: Job) -> Iterator[Assembled]:
    """The job's settings, data and model, while the block runs."""
    device = hardware.device_of(world.local_device(job.device))
    if world.size() > 1:
        shims.share_norms()
    with shims.workplace() as scratch:
        config = shims.configured(job, device, scratch)
        metrics_of(config), stage_of(config)  # mistakes in them are told before the data are read
        dataset, (train, valid, test) = shims.loaders(config, job.ranking.times)
        model = Adapted(shims.built(config, train), config)
        rows = training_rows(config, train, (world.rank(), world.size()))
        found: dict[Part, Ranked | None] = {
            "validation": ranked(config, dataset, valid),
            "test": ranked(config, dataset, test),
        }
        yield Assembled(job, config, model, rows, {part: some for part, some in found.items() if some is not None})


def train(job: Job, folder: Path) -> dict[Part, Result]:
    """Carry out the run in `folder`, or go on with it; the results of the weights that validation chose."""
    hardware.keep_freed_memory()
    with _held(folder):
        if world.leads():
            _claim(folder, job)
            log.write_status(folder, "running")
            checkpoint.sweep(folder / "checkpoints")
        world.wait()
        try:
            with leaving_at_once(), assembled(job) as run:
                if world.leads():
                    _describe(run, folder)
                with interruptible() as interruption:
                    _fit(run, folder, interruption)
                results = {part: run.measured(part) for part in run.parts}
        except (InterruptedRunError, KeyboardInterrupt) as error:
            _status(folder, "interrupted", str(error), error.code if isinstance(error, InterruptedRunError) else 130)
            raise
        except BaseException as error:
            _status(folder, "failed", f"{type(error).__name__}: {error}", 1)
            raise
        if world.leads():
            for part, result in results.items():
                result.write(folder / "evaluation" / part, run.parts[part].store)
        _status(folder, "finished")
    return results


def load_best(model: Adapted, folder: Path) -> None:
    """Put the weights that validation chose into the model."""
    chosen = checkpoint.load_chosen(folder / "checkpoints")
    if chosen is None:
        raise UserError(f"{folder} has no weights of a whole epoch yet: go on with it first.")
    model.load_state_dict(chosen, strict=True)


def _fit(run: Assembled, folder: Path, interruption: Interruption) -> None:
    stage = stage_of(run.config)
    state = loop.start(run.model, stage, run.config["device"])
    if saved := checkpoint.load_latest(folder / "checkpoints"):
        state.restore(saved.tensors, saved.state)
        logger.info("Going on after step %d", state.position.global_step)
    if world.size() > 1:
        refuse_coupled(run)
    with log.MetricsLog(folder, state.position.global_step) if world.leads() else nullcontext() as metrics:
        while state.position.epoch < stage.epochs:
            if run.stopping.should_stop(state.stopper):
                logger.info("No gain for %d evaluations: stopping early", int(run.config["stopping_step"]) + 1)
                break
            _epoch(run, folder, state, stage, metrics, interruption)
    load_best(run.model, folder)


def _epoch(
    run: Assembled,
    folder: Path,
    state: TrainState,
    stage: Stage,
    metrics: log.MetricsLog | None,
    interruption: Interruption,
) -> None:
    """Train for the rest of an epoch, validate where it is time to, and write a checkpoint."""
    position, plan = state.position, run.train.epoch(state.position.epoch)
    steps = min(len(plan), run.job.steps or len(plan))
    saved = began = time.monotonic()
    for record in loop.fit(state, _Some(plan, steps), stage, run.config["device"]):
        if metrics:
            facts = {"gradient_norm": record.gradient_norm, "lr": record.lr, "epoch": position.epoch + 1}
            metrics.write("train", position.global_step, {**record.losses, **facts})
        if position.step == steps:
            break  # the end of the epoch validates first and saves then
        late = world.leads() and time.monotonic() - saved > 60 * MINUTES
        signal, due = world.greatest([int(interruption.signal or 0), int(late)])
        if signal or due:
            _save(folder, state)
            saved = time.monotonic()
        heed(int(signal), position.global_step, _to_go_on(folder))
    values: dict[str, float] = {"loss": position.loss / max(1, position.targets)}
    position.epoch, position.step, position.loss, position.targets = position.epoch + 1, 0, 0.0, 0
    values |= _validated(run, state)
    if metrics:
        metrics.write("epoch", position.global_step, {"epoch": position.epoch, **values})
    told = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    logger.info(f"Epoch {position.epoch}/{stage.epochs}: {told}; {time.monotonic() - began:,.1f} s")
    _save(folder, state)
    heed(int(world.greatest([int(interruption.signal or 0)])[0]), position.global_step, _to_go_on(folder))


def _validated(run: Assembled, state: TrainState) -> dict[str, float]:
    """The validation values of this epoch, which choose the weights; without validation the last ones are chosen."""
    epoch, every = state.position.epoch, int(run.config["eval_step"])
    if every < 1 or "validation" not in run.parts:
        state.best_step = state.position.global_step
        return {}
    if epoch % min(every, int(run.config["epochs"])):
        return {}
    values = run.measured("validation").values
    state.stopper = run.stopping.update(state.stopper, epoch, values[str(run.config["valid_metric"]).lower()])
    if state.stopper.best_epoch == epoch:
        state.best_step = state.position.global_step
    return dict(values)


class _Some:
    """The first steps of an epoch, for a trial."""

    def __init__(self, epoch: Epoch, steps: int) -> None:
        self.batch, self.key, self.number, self._steps = epoch.batch, epoch.key, epoch.number, steps

    def __len__(self) -> int:
        return self._steps


def refuse_coupled(run: Assembled) -> None:
    """Refuse a model of whose loss no process can have a share."""
    whole = Epoch(run.train.loader, run.train.epoch(0).order, run.train.epoch(0).key, 0, (0, 1)).batch(0)
    if coupled(run.model, whole.to(run.config["device"])):
        raise UserError(
            f"The loss of {run.job.model} is no mean over the rows of a batch (it is a sum, compares rows with one another, or "
            "draws noise of its own), so that shares of a batch do not add up to it: train it in one process."
        )


def _save(folder: Path, state: TrainState) -> None:
    if world.leads():
        tensors, facts = state.capture()
        checkpoint.save(folder / "checkpoints", state.position.global_step, tensors, facts)
        needed = {state.position.global_step} | ({state.best_step} if state.best_step is not None else set())
        checkpoint.keep(folder / "checkpoints", KEPT, needed)
    world.wait()


def _to_go_on(folder: Path) -> str:
    return f"turborec recbole train --resume {folder}"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run folder for this run alone, and its log; of several processes the leader holds both."""
    with ExitStack() as stack:
        if world.leads():
            stack.enter_context(leaving_at_once())
            stack.enter_context(lock(folder))
            stack.enter_context(log.logging_to(folder))
        stack.enter_context(log.logging_to(None, logging.INFO if world.leads() else logging.WARNING))
        yield


def _status(folder: Path, state: log.Status, reason: str = "", code: int = 0) -> None:
    if world.leads():
        log.write_status(folder, state, reason, code)


def _claim(folder: Path, job: Job) -> None:
    """Write the job down, and refuse a folder that holds another one."""
    path = folder / JOB
    if path.is_file() and Job.model_validate_json(path.read_bytes()) != job:
        raise UserError(f"{folder} holds a run of another job (see {path}). Give this one a folder of its own.")
    write_whole(path, job.model_dump_json(indent=1))


def _describe(run: Assembled, folder: Path) -> None:
    """Write down with which settings and where the run works; a run that goes on must have the same."""
    settings = {name: value for name, value in run.config.final_config_dict.items() if name not in _PLACES}
    text, path = json.dumps(settings, indent=1, sort_keys=True, default=str), folder / "settings.json"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"The files that {folder} had its settings from say something else now: see {path}.")
    write_whole(path, text)
    if not (folder / "environment.json").is_file():
        write_whole(folder / "environment.json", json.dumps(log.environment(), indent=1))
    parameters, rows = sum(p.numel() for p in run.model.parameters()), int(run.train.loader.sample_size)
    asked = ", ".join(f"{some.store.num_users:,} to rank in {part}" for part, some in run.parts.items())
    logger.info(f"{run.config['model']} with {parameters:,} parameters on {run.config['dataset']}")
    logger.info(f"{rows:,} rows to train on, {asked}; history {history_of(run.config, run.job.ranking)}")


_PLACES = {"checkpoint_dir", "device", "data_path"}
