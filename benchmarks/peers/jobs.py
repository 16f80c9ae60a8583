"""What is measured beside what: a peer's job from turborec's recipe, and rows of results from the answers.

Nothing here runs anything.
"""

from dataclasses import dataclass
from typing import Any

from turborec.bench.step import median
from turborec.recipes import AnyRecipe

Answer = dict[str, Any]
Row = dict[str, Any]

PEERS = ("recbole", "rectools", "replay")

BATCH_SIZE = {"recbole": 512, "rectools": 128, "replay": 64}
"""Rows of a batch: prefixes, or sequences."""

BEST_BATCH_SIZE = {("replay", "amazon-beauty-2014", "sasrec"): 8}
"""Where another size makes a peer faster: RePlay takes like lengths together, so that small batches are narrow ones."""

LEARNING_RATE = 1e-3
"""The default of all three."""

REACHED = 0.99
"""Share of a peer's best validation value that counts as its quality."""


@dataclass(frozen=True)
class Case:
    """One recipe, changed or not, on one data set."""

    recipe: str  # the shipped recipe's name
    variant: str  # default, or what is changed
    protocol: dict[str, Any]
    seed: int

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.recipe.split("/")[0]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.recipe.split("/")[1]

    def file(self, peer: str) -> str:
        """The name of the case's file beside a peer."""
        words = [] if self.variant == "default" else self.variant.replace("=", "-").replace(", ", "-").split()
        return "-".join([self.data, self.model, peer, *words])


def peer_job(
    recipe: AnyRecipe,
    peer: str,
    data: str,
    events: str,
    budget: dict[str, Any],
    precision: str,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The recipe's model in its shape, as the fields of a `measuring.Job`; batches of the size that suits the peer."""
    model = recipe.model
    sampled = model.loss.kind == "sampled_softmax"
    return {
        "events": events,
        "model": model.kind,
        "width": model.width,
        "layers": model.layers,
        "heads": getattr(model, "heads", 1),
        "hidden": model.hidden,
        "max_length": recipe.batches.max_length,
        "dropout": model.dropout,
        "batch_size": batch_size or BEST_BATCH_SIZE.get((peer, data, model.kind), BATCH_SIZE[peer]),
        "loss": "sampled_softmax" if sampled else "softmax",
        "negatives": model.loss.negatives if sampled else 0,
        "mask_share": getattr(model, "mask_share", 0.0),
        "learning_rate": LEARNING_RATE,
        "precision": precision,
        **budget,
    }


def protocol(recipe: AnyRecipe, settings: dict[str, Any]) -> dict[str, Any]:
    """What a reader must know of a comparison; `settings` are those of the measuring."""
    shown = {"kind", "width", "layers", "heads", "hidden", "dropout", "mask_share", "loss"}
    return {
        "split": recipe.data.split.kind,
        "part": "validation",
        "history": "masked",
        "request_time": "none",
        "max_length": recipe.batches.max_length,
        "tokens": recipe.batches.tokens,
        "model": recipe.model.model_dump(mode="json", include=shown),
        "targets": "predictions that entered the loss",
        **settings,
    }


def speed_rows(case: Case, peer: str, ours: list[Answer], theirs: list[Answer], provenance: dict[str, Any]) -> list[Row]:
    """turborec's row with its ratios to the peer, and the peer's own; round by round, `ours` beside `theirs`."""
    ratios = {
        f"targets_per_second_vs_{peer}": ("targets_per_cpu_second", False),
        f"targets_per_second_vs_{peer}_by_wall": ("targets_per_second", False),
        f"evaluation_vs_{peer}": ("evaluation_cpu_seconds", True),
        f"evaluation_vs_{peer}_by_wall": ("evaluation_seconds", True),
    }
    pairs = {
        name: [b[key] / a[key] if less_is_better else a[key] / b[key] for a, b in zip(ours, theirs, strict=True)]
        for name, (key, less_is_better) in ratios.items()
    }
    return [
        _row(case, peer, case.variant, ours, pairs, provenance),
        _row(case, peer, _variant(case, peer, theirs[0]), theirs, {}, provenance),
    ]


def quality_rows(case: Case, peer: str, ours: Answer, theirs: Answer, provenance: dict[str, Any]) -> list[Row]:
    """How long each takes to the peer's quality: the first validation that comes near the peer's best."""
    goal = REACHED * max(point["ndcg@10"] for point in theirs["curve"])
    rows = []
    for variant, answer in ((case.variant, ours), (_variant(case, peer, theirs), theirs)):
        row = _row(case, peer, variant, [answer], {}, provenance)
        row["values"] = {"ndcg@10": max(point["ndcg@10"] for point in answer["curve"])}
        for name, clock in (("quality_cpu_seconds", "training_cpu_seconds"), ("quality_seconds", "training_seconds")):
            if (seconds := seconds_to(answer["curve"], goal, clock)) is not None:
                row["values"][name] = seconds
        rows.append(row | {"goal": goal, "curve": answer["curve"]})
    own, other = (row["values"] for row in rows)
    for name, key in (("", "quality_cpu_seconds"), ("_by_wall", "quality_seconds")):
        if key in own:  # the peer comes to its own quality in any case
            own[f"quality_seconds_vs_{peer}{name}"] = other[key] / own[key]
    return rows


def seconds_to(curve: list[dict[str, float]], goal: float, clock: str) -> float | None:
    """Seconds by `clock` to the first point that reaches the goal; None where none does."""
    return next((point[clock] for point in curve if point["ndcg@10"] >= goal), None)


def _variant(case: Case, peer: str, answer: Answer) -> str:
    package = {"replay": "replay-rec"}.get(peer, peer)
    name = f"{peer} {answer['versions'][package]}"
    return name if case.variant == "default" else f"{name}, {case.variant}"


VALUES = (
    "targets_per_second",
    "targets_per_cpu_second",
    "epoch_seconds",
    "epoch_cpu_seconds",
    "preparation_seconds",
    "evaluation_seconds",
    "evaluation_cpu_seconds",
    "peak_mib",
)


def _row(
    case: Case,
    peer: str,
    variant: str,
    answers: list[Answer],
    ratios: dict[str, list[float]],
    provenance: dict[str, Any],
) -> Row:
    first = answers[0]
    measured = {name: [float(a[name]) for a in answers] for name in VALUES if name in first} | ratios
    spreads = {name: median(values) for name, values in measured.items()}
    rounds = [{name: value for name, value in a.items() if name not in ("versions", "curve", "peer")} for a in answers]
    told = {
        "peer": peer,
        "batch_size": first.get("batch_size"),
        "hidden_as_measured": first.get("hidden"),
        "loss_as_measured": first.get("loss"),
        "evaluation": first["evaluation"],
        "epoch": "extrapolated from a part" if first["part_of_an_epoch"] else "measured whole",
        "threads": provenance["threads"],
    }
    return {
        "kind": "speed",
        "data": case.data,
        "model": case.model,
        "recipe": case.recipe,
        "variant": variant,
        "seed": case.seed,
        "protocol": case.protocol | {name: value for name, value in told.items() if value is not None},
        "values": {name: float(spread.value) for name, spread in spreads.items()},
        "intervals": {name: [spread.low, spread.high] for name, spread in spreads.items()},
        "rounds": rounds,
        "provenance": provenance | {"versions": provenance["versions"] | first["versions"]},
    }
