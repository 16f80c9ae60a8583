"""Trainings that gate one another: each starts when the one before has ended well and was good enough.

A file of phases is run by one command, which may be stopped and started again: what is finished is not trained again.
"""

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from turborec import recipes
from turborec.engine import checkpoint
from turborec.engine.lock import lock
from turborec.engine.log import read_metrics, state_of, write_status
from turborec.errors import InterruptedRunError, UserError, closest
from turborec.recipe import Config, dump, read, validate
from turborec.recipes import AnyRecipe

FAILED = 10
"""The exit code of a sequence whose phase N failed is this plus N; 75 and 130 are those of an interruption, as in a run."""

INTERRUPTED = (75, 130, *(128 + number for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)))
"""Exit codes of a training that was asked to stop; the last ones are of one that had not begun to listen."""

Train = Callable[[list[str], Path], int]
"""Carries out a training, given the words of `turborec train` and its run folder, and returns its exit code."""


class Phase(Config):
    """One training, and what must have come of it before the next one starts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also of its run folder")
    recipe: str = Field(description="a shipped recipe or a YAML file")
    overrides: tuple[str, ...] = Field((), description="changes to the recipe, such as seed=2")
    at_least: dict[str, float] = Field({}, description="the least that each named metric must be, such as ndcg@10: 0.15")
    part: Literal["validation", "test"] = Field(
        "validation", description="where it is measured: the chosen epoch's validation, or the test"
    )

    def load(self) -> AnyRecipe:
        """The recipe; `UserError` where there is none, or where it does not measure what the phase asks for."""
        recipe = recipes.load(self.recipe, self.overrides)
        measured = [metric.name for metric in recipe.evaluation.without_lists().metrics]
        for metric in self.at_least:
            if metric not in measured:
                raise UserError(
                    f"The phase {self.name} asks for {metric!r}, which its recipe does not measure{closest(metric, measured)}."
                )
        return recipe


class Phases(Config):
    """Trainings in their order."""

    phases: tuple[Phase, ...] = Field(min_length=1, max_length=50)

    @model_validator(mode="after")
    def _names_differ(self) -> "Phases":
        names = [phase.name for phase in self.phases]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"phases: two are called {twice!r}, and would share a run folder")
        return self

    def trial(self, overrides: Iterable[str]) -> "Phases":
        """The same, to see that it runs: each recipe changed, and nothing asked of what comes of it."""
        return Phases(
            phases=tuple(
                phase.model_copy(update={"at_least": {}, "overrides": (*phase.overrides, *overrides)}) for phase in self.phases
            )
        )

    def carried(self, out: str) -> tuple[str, dict[str, str]]:
        """The same phases as text for another machine, and that of each recipe that is a file here, by its place there."""
        beside, phases = {}, []
        for phase in self.phases:
            place = phase.recipe
            if place not in recipes.shipped():
                place = f"{out}.{phase.name}.yaml"
                beside[place] = Path(phase.recipe).read_text(encoding="utf-8")
            phases.append(phase.model_copy(update={"recipe": place}))
        return dump(Phases(phases=tuple(phases))), beside


def shipped() -> dict[str, Path]:
    """Name and file of the sequences that come with turborec."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "sequences").glob("*.yaml"))}


def load(name: str) -> Phases:
    """The sequence called `name`: a shipped one, or a YAML file; every recipe of it is looked at."""
    known = shipped()
    if name not in known and not Path(name).is_file():
        raise UserError(f"There are no phases called {name!r}, nor is there such a file{closest(name, list(known))}.")
    found = validate(Phases, read(known.get(name, Path(name))), f"The file of phases {name}")
    for phase in found.phases:
        phase.load()
    return found


def run(sequence: Phases, folder: Path, words: list[str], train: Train) -> int:
    """Train phase after phase below `folder`, each with further `words` of `turborec train`: 0 when all were good enough.

    Otherwise the code of an interruption, or `FAILED` plus the number of the phase that failed; `status.json` says why.
    """
    for phase in sequence.phases:
        _is_done(phase, folder / phase.name)  # a folder of other runs is refused before anything is written
    with lock(folder):
        return _run(sequence, folder, words, train)


def _run(sequence: Phases, folder: Path, words: list[str], train: Train) -> int:
    write_status(folder, "running")
    try:
        for number, phase in enumerate(sequence.phases, start=1):
            place, title = folder / phase.name, f"Phase {number} of {len(sequence.phases)}, {phase.name}"
            if _is_done(phase, place):
                print(f"{title}: finished before, in {place}", flush=True)
            else:
                print(f"{title}: begins in {place}", flush=True)
                code = train([phase.recipe, *phase.overrides, *words], place)
                if code in INTERRUPTED:
                    raise InterruptedRunError(f"{title}: stopped; the same command goes on", 130 if code == 130 else 75)
                if code:
                    return _ended(folder, f"{title}: the training ended with exit code {code}", FAILED + number)
            if missed := _missed(phase, place):
                return _ended(folder, f"{title}: {missed}", FAILED + number)
    except InterruptedRunError as error:
        write_status(folder, "interrupted", str(error), error.code)
        raise
    except BaseException as error:
        write_status(folder, "failed", f"{type(error).__name__}: {error}", 1)
        raise
    write_status(folder, "finished")
    return 0


def _ended(folder: Path, reason: str, code: int) -> int:
    print(f"{reason}. The phases after it are not begun. Exit code {code}.", flush=True)
    write_status(folder, "failed", reason, code)
    return code


def _is_done(phase: Phase, place: Path) -> bool:
    """Whether the phase's run is finished; one of another recipe is refused."""
    if state_of(place) != "finished":
        return False
    path = place / "recipe.yaml"
    if dump(recipes.from_tree(read(path), str(path))) != dump(phase.load()):
        raise UserError(f"{place} holds a finished run of another recipe than the phase {phase.name}: name another --out.")
    return True


def _missed(phase: Phase, place: Path) -> str:
    """Which conditions the run in `place` does not meet, in words; '' if it meets all."""
    told = []
    for metric, least in phase.at_least.items():
        value = measured(place, phase.part, metric)
        verdict = "as asked" if value >= least else "too little"
        line = f"{phase.part} {metric} is {value:.4f}, at least {least:g} is asked"
        print(f"{phase.name}: {line}: {verdict}", flush=True)
        told += [line] * (value < least)
    return "; ".join(told)


def measured(place: Path, part: Literal["validation", "test"], metric: str) -> float:
    """A metric of the run in `place`: of the test, or of the validation of the epoch that was chosen."""
    try:
        if part == "test":
            model = read(place / "recipe.yaml")["model"]["kind"]
            result = json.loads((place / "evaluation" / "test" / model / "result.json").read_text(encoding="utf-8"))
            return float(result["values"][result["protocol"]["history"]][metric])
        newest = checkpoint.latest(place / "checkpoints")
        state = json.loads((newest / checkpoint.STATE).read_text(encoding="utf-8")) if newest else {}
        records = [one for one in read_metrics(place) if one["kind"] == "epoch"]
        return float(next(one[metric] for one in records if one["step"] == state["best_step"]))
    except (OSError, LookupError, ValueError, TypeError, StopIteration) as error:
        hint = " A model that is counted has no validation: ask for part: test." if part == "validation" else ""
        raise UserError(f"{place} does not say what its {part} {metric} is ({type(error).__name__}: {error}).{hint}") from error
