"""Measure turborec itself, as `measure.py` measures a peer: the same clocks, the same answer, by turborec's own interpreter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import Budget, Curve, Meter, Stopwatch, peak_mib, prepare_process, serve, versions

from turborec import recipes
from turborec.assembly import Assembly, assemble, measure
from turborec.data.loader import TrainingBatches
from turborec.data.store import open_store
from turborec.engine import hardware, loop


@dataclass(frozen=True, kw_only=True)
class OwnJob(Budget):
    """What turborec is asked to do: a recipe on its prepared store."""

    store: str
    recipe: str
    overrides: list[str]
    precision: str = "float32"


def train(job: OwnJob, assembly: Assembly, meter: Meter, curve: Curve) -> None:
    """Take the recipe's own steps: until the meter has seen enough, or for whole epochs with a validation after each."""
    batches, stage = TrainingBatches(assembly.store, assembly.recipe.batches, job.seed), assembly.recipe.stages[0]
    state = loop.start(assembly.model, stage, assembly.device)
    done = False
    while not done:
        curve.begin()
        meter.resume()
        plan = batches.epoch(state.position.epoch)
        for record in loop.fit(state, plan, stage, assembly.device):
            if meter.step(record.asked, record.targets):
                return
        state.position.epoch, state.position.step = (state.position.epoch + 1) % stage.epochs, 0
        if job.epochs:
            meter.pause()
            curve.training.stop()
            with state.averaged():
                done = curve.validated(evaluate(assembly))


def evaluate(assembly: Assembly) -> float:
    """NDCG@10 of the validation part."""
    return measure(assembly, "validation", config=assembly.recipe.evaluation.without_lists()).masked["ndcg@10"]


def answer(job: OwnJob) -> dict[str, Any]:
    """Train for a while or for some epochs, then rank every user's validation event."""
    prepare_process(job)
    hardware.keep_freed_memory()  # as every command of turborec's does
    overrides = [
        *job.overrides,
        f"train.precision={job.precision}",
        f"seed={job.seed}",
        *([f"train.epochs={job.epochs}"] if job.epochs else []),
    ]
    with Stopwatch() as preparation:
        assembly = assemble(recipes.load(job.recipe, overrides), open_store(Path(job.store)))
    meter, curve = Meter.of(job), Curve(job)
    train(job, assembly, meter, curve)
    meter.pause()
    peak = peak_mib()
    with Stopwatch() as ranking:
        value = evaluate(assembly)
    return {
        "peer": "turborec",
        "versions": versions("torch", "numpy"),
        "opening_seconds": preparation.wall,
        **meter.rates(TrainingBatches(assembly.store, assembly.recipe.batches, job.seed).epoch(0).targets),
        "peak_mib": peak,
        "evaluation_seconds": ranking.wall,
        "evaluation_cpu_seconds": ranking.cpu,
        "evaluation": "exact ranks of the whole catalogue, history masked and kept, all metrics of ranks",
        "evaluated_users": len(assembly.store.users_of("validation")),
        "ndcg@10": value,
        "curve": curve.points,
    }


if __name__ == "__main__":
    serve(OwnJob, answer)
