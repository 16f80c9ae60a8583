"""A search for settings: whole trainings chosen by Optuna, each judged and cut short by its validation alone.

Every trial is a run folder that never opens its test part. What is stopped goes on where it was, and several processes may
search one folder at a time.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from turborec import run
from turborec.engine import log
from turborec.engine.lock import lock
from turborec.engine.log import read_metrics
from turborec.errors import InterruptedRunError, UserError
from turborec.files import write_whole
from turborec.recipe import Config, MistakesError, Tree, dump, override, read, validate
from turborec.recipes import AnyRecipe, from_tree
from turborec.stores import Places

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger("turborec")

JOURNAL, BEST, MADE_OF = "trials.journal", "best.yaml", "search.json"
NAME = "search"

SPARED = 5
"""The first fifth of a training is not held against it."""


class Span(Config):
    """Numbers from `low` to `high`, both included."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="as likely between 1 and 10 as between 10 and 100")
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _is_a_span(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("with log, low must be above 0 and there is no step")
        return self

    @property
    def example(self) -> int | float:
        """A value that it may take."""
        return self.low

    def drawn(self, trial: "optuna.Trial", name: str) -> int | float:
        """A trial's value."""
        if all(isinstance(number, int) for number in (self.low, self.high, self.step or 1)):
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return _plain(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))


def _plain(number: float) -> float:
    """A number as a recipe would say it: .3, where steps of .1 come to .30000000000000004."""
    return float(f"{number:.12g}")


class Choice(Config):
    """One of several values of any kind."""

    choices: tuple[Any, ...] = Field(min_length=1)

    @property
    def example(self) -> Any:
        """A value that it may take."""
        return self.choices[0]

    def drawn(self, trial: "optuna.Trial", name: str) -> Any:
        """A trial's value; Optuna knows it as the text that YAML has for it."""
        return json.loads(trial.suggest_categorical(name, [json.dumps(one) for one in self.choices]))


Space = Mapping[str, Span | Choice]


def _kind(given: Any) -> str:
    """What somebody meant, by what cannot be in the other."""
    return "one of" if isinstance(given, dict) and "choices" in given else "from to"


class _Read(Config):
    space: dict[str, Annotated[Annotated[Span, Tag("from to")] | Annotated[Choice, Tag("one of")], Discriminator(_kind)]] = (
        Field(min_length=1)
    )


@dataclass(frozen=True)
class Plan:
    """How long is searched, and how."""

    trials: int = 20  # of all processes together
    sampler: Literal["tpe", "random"] = "tpe"
    prune: bool = True  # end a trial whose validation is below the median of the others' at its epoch
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """What came of one training."""

    number: int
    state: str  # complete, pruned, failed, running
    value: float | None  # the best validation value so far
    epochs: int
    settings: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class _Job:
    """What the trials of one process share."""

    study: "optuna.Study"
    recipe: AnyRecipe
    space: Space
    plan: Plan
    folder: Path
    places: Places
    device: str


def space_of(path: Path, recipe: AnyRecipe) -> Space:
    """The space in a YAML file: a recipe's keys and what they may be. A UserError where the recipe has no such key."""
    tree = read(path)
    space = validate(_Read, {"space": tree}, str(path)).space
    mistakes: list[str] = []
    for name, one in space.items():
        if name.split(".")[0] == "data":
            mistakes.append(f"{name} would need data of its own for each trial: search those of one store.")
            continue
        values = one.choices if isinstance(one, Choice) else (one.low, one.high)
        for value in values:
            try:
                _changed(recipe, {name: value})
            except MistakesError as error:
                mistakes += [f"{mistake}, with {name}={json.dumps(value)}" for mistake in error.mistakes]
    if mistakes:
        raise MistakesError(str(path), mistakes)
    return space


def search(recipe: AnyRecipe, space: Space, plan: Plan, folder: Path, places: Places, device: str = "auto") -> list[Trial]:
    """Train until there are as many trials as planned, and say what came of all in `folder`; the best first.

    The best settings are left there as a recipe. A UserError where the folder holds a search of something else.
    """
    optuna = _optuna()
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, recipe, space)
    study = optuna.create_study(
        study_name=NAME, storage=_storage(folder), direction="maximize", load_if_exists=True, pruner=_pruner(plan, recipe)
    )
    job = _Job(study, recipe, space, plan, folder, places, device)
    for trial in _left(study):
        _carry_out(job, trial)
    while len(_begun(study)) < plan.trials:
        trial = study.ask()
        if trial.number not in _begun(study)[: plan.trials]:  # another process was faster
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            break
        _carry_out(job, trial)
    found = trials_of(study, folder)
    if best := best_of(found):
        told = f"# Trial {best.number} of {len(found)}: validation {recipe.select} {best.value:.4f}.\n"
        write_whole(folder / BEST, told + dump(_changed(recipe, best.settings)))
    return found


def _left(study: "optuna.Study") -> "list[optuna.Trial]":
    """Trials that have begun and not ended, another process's among them."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    return [optuna.Trial(study, one._trial_id) for one in trials if one.state == optuna.trial.TrialState.RUNNING]


def best_of(found: Sequence[Trial]) -> Trial | None:
    """The best of those that came to their end: one that diverged may have been better before."""
    return next((trial for trial in found if trial.state == "complete"), None)


def _begun(study: "optuna.Study") -> list[int]:
    """The numbers of the trials that are trained or were; what was asked for and given back at once has no settings."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    return [one.number for one in trials if one.params or one.state == optuna.trial.TrialState.RUNNING]


def trials_of(study: "optuna.Study", folder: Path) -> list[Trial]:
    """What came of every trial, the best first, those without a value last."""
    found = []
    for one in study.get_trials(deepcopy=False):
        if not one.params:
            continue
        values = one.intermediate_values
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(one.state.name, "running")
        settings = {name: _told(value) for name, value in one.params.items()}
        value = max(values.values()) if values else None
        found.append(Trial(one.number, state, value, max(values, default=0), settings, _place(folder, one.number)))
    return sorted(found, key=lambda trial: (trial.value is None, -(trial.value or 0.0), trial.number))


def _told(parameter: Any) -> Any:
    """A value as it was drawn, from what Optuna keeps of it."""
    if isinstance(parameter, str):
        return json.loads(parameter)
    return _plain(parameter) if isinstance(parameter, float) else parameter


def _carry_out(job: _Job, trial: "optuna.Trial") -> None:
    """Train a trial, or go on with it, and tell the study what it came to; nothing where another process is about it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(job.folder / "held" / f"{trial.number:04d}"))
        except UserError:
            return
        if not job.study.get_trials(deepcopy=False)[trial.number].state.is_finished():  # by another process, meanwhile
            _train(job, trial)


def _train(job: _Job, trial: "optuna.Trial") -> None:
    import optuna

    # By the trial's number, so that processes side by side do not draw alike.
    job.study.sampler = _sampler(job.plan, trial.number)
    settings, select = {name: one.drawn(trial, name) for name, one in job.space.items()}, job.recipe.select
    place = _place(job.folder, trial.number)
    known = dict(job.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    pruned = False

    def watch(epoch: int, values: Mapping[str, float]) -> None:
        nonlocal pruned
        if select not in values:
            return
        if epoch not in known:
            known[epoch] = values[select]
            trial.report(values[select], epoch)
        if trial.should_prune():
            pruned = True
            raise InterruptedRunError(f"Pruned: its validation {select} is below what is usual after {epoch} epochs.", 0)

    _say(f"Trial {trial.number}: {', '.join(f'{name}={value}' for name, value in settings.items())}")
    state, why = optuna.trial.TrialState.COMPLETE, ""
    try:
        recipe = _changed(job.recipe, settings)
        place.mkdir(exist_ok=True)
        write_whole(place / run.TRIAL, json.dumps({"number": trial.number, "settings": settings}))
        for record in read_metrics(place):  # a process may have been killed before it told the study of an epoch
            if record["kind"] == "epoch":
                before = recipe.stages[: record.get("stage", 1) - 1]
                watch(sum(stage.epochs for stage in before) + record["epoch"], record)
        run.train(recipe, place, job.places, job.device, watch=watch)
    except InterruptedRunError as error:
        if not pruned:  # the trial stays as it is, for whoever goes on
            said = f"Trial {trial.number} is stopped and everything is saved. Go on with the same command, turborec search …"
            raise InterruptedRunError(said, error.code) from error
        state = optuna.trial.TrialState.PRUNED
    except UserError as error:  # such as a training that diverged
        state, why = optuna.trial.TrialState.FAIL, str(error)
    if state == optuna.trial.TrialState.COMPLETE and not known:
        state, why = optuna.trial.TrialState.FAIL, f"it was never validated by {select}"
    if why:
        logger.warning(f"Trial {trial.number} failed: {why}")
    elif known:
        ended = "pruned" if pruned else "complete"
        _say(f"Trial {trial.number}: {ended} after {max(known)} epochs, best validation {select} {max(known.values()):.4f}")
    job.study.tell(trial, max(known.values()) if state == optuna.trial.TrialState.COMPLETE else None, state)


def _say(text: str) -> None:
    with log.logging_to(None):
        logger.info(text)


def _claim(folder: Path, recipe: AnyRecipe, space: Space) -> None:
    """Write down what is searched, and refuse a folder where something else was."""
    path, made_of = (
        folder / MADE_OF,
        {
            "recipe": recipe.model_dump(mode="json"),
            "space": {name: one.model_dump(mode="json") for name, one in space.items()},
        },
    )
    if not path.is_file():
        write_whole(path, json.dumps(made_of, indent=1))
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(made_of)):
        raise UserError(f"{folder} holds a search of another recipe or space. Give this one another --out.")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("A search needs Optuna: pip install 'turborec[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(folder: Path) -> "optuna.storages.JournalStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def _sampler(plan: Plan, number: int) -> "optuna.samplers.BaseSampler":
    from optuna.samplers import RandomSampler, TPESampler

    seed = (plan.seed * 1_000_003 + number) % 2**32
    return TPESampler(seed=seed) if plan.sampler == "tpe" else RandomSampler(seed=seed)


def _pruner(plan: Plan, recipe: AnyRecipe) -> "optuna.pruners.BasePruner":
    from optuna.pruners import MedianPruner, NopPruner

    # What learns slowly at first is often better in the end, and rates still rise then.
    # Optuna spares what is below a number of steps, and these are epochs that are over: one more.
    spared = math.ceil(sum(stage.epochs for stage in recipe.stages) / SPARED)
    return MedianPruner(n_warmup_steps=spared + 1) if plan.prune else NopPruner()


def _place(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"


def _changed(recipe: AnyRecipe, settings: Mapping[str, Any]) -> AnyRecipe:
    tree: Tree = recipe.model_dump(mode="json")
    assignments = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return from_tree(override(tree, assignments), f"The recipe with {' '.join(assignments)}")
