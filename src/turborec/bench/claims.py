"""Claims in numbers, and whether a measurement bears them out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

NEAR, HALF = 0.9, 0.5
"""Shares of a claimed gain from which on a claim holds, and holds in part; a claim of 2x has a gain of 1."""

HALVINGS, TRIALS = 16, 2000
"""A scaler of float16 begins with 2^16, leaves out steps until that is small enough, and tries a larger one every 2,000."""

Values = Mapping[str, float | None]
"""What was measured of a variant, by the names of docs/design.md; None where there is no such number."""

Held = Literal["held", "in part", "did not hold", "not measured"]

TIMES = {"training": "training of an epoch", "epoch": "an epoch with its validation", "validation": "validation"}


@dataclass(frozen=True)
class Claim:
    """One thing that is said of a change.

    training, epoch, validation: so many times as fast; memory: this share of the baseline's; quality: the test value does not
    fall below this share of the baseline's; finite, overflow: no step, or some step, with a number that is none.
    """

    of: Literal["training", "epoch", "validation", "memory", "quality", "finite", "overflow"]
    figure: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held, and in which words."""

    held: Held
    told: str


def judge_unfinished(claim: Claim, state: str) -> Verdict:
    """What can be said of a training that diverged, or failed: of its numbers nothing, since they are of a part of it."""
    if state == "diverged" and claim.of in ("finite", "overflow"):
        held: Held = "did not hold" if claim.of == "finite" else "held"
        return Verdict(held, f"the training came to numbers that are none: {held}")
    return Verdict("not measured", "not judged, as the training did not end")


def judge(claim: Claim, own: Values, baseline: Values, clock: Literal["seconds", "cpu_seconds"], quality: str) -> Verdict:
    """Hold what was measured of a variant against what is claimed of it.

    `clock`: which seconds count; `quality`: the name of the test value that does.
    """
    if claim.of in ("finite", "overflow"):
        return _steps(claim, own, baseline)
    if claim.of == "quality":
        return _quality(claim, own.get(quality), baseline.get(quality), quality)
    if claim.of == "memory":
        key = "accelerator_peak_mib" if own.get("accelerator_peak_mib") else "peak_mib"
        share = _ratio(own.get(key), baseline.get(key))
        if share is None:
            return Verdict("not measured", "memory was not measured")
        held = _reached(1 - share, 1 - claim.figure)
        return Verdict(held, f"{share:.0%} of the memory, {claim.figure:.0%} claimed: {held}")
    gain = _ratio(taken(claim.of, baseline, clock), taken(claim.of, own, clock))
    if gain is None:
        return Verdict("not measured", f"{TIMES[claim.of]} was not measured")
    held = _reached(gain - 1, claim.figure - 1)
    return Verdict(held, f"{TIMES[claim.of]} {gain:.2f}x as fast, {claim.figure:g}x claimed: {held}")


def taken(what: str, values: Values, clock: str) -> float | None:
    """Seconds of an epoch: of its training, of validation on the mean, or of both."""
    if what != "epoch":
        return values.get(f"{what}_{clock}")
    parts = [values.get(f"{part}_{clock}") for part in ("training", "validation")]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def of_variant(verdicts: list[Verdict]) -> Held:
    """What became of the claims about a variant: the first is what it is for, and holds in part where another does not."""
    if not verdicts:
        return "not measured"
    first, others = verdicts[0].held, {one.held for one in verdicts[1:]}
    return "in part" if first == "held" and others & {"did not hold", "in part"} else first


def of_lever(variants: list[Held]) -> tuple[Held, str]:
    """What became of the claims about a lever, whose variants may differ; and in how many of them."""
    found = [held for held in variants if held != "not measured"]
    if len(set(found)) < 2:
        held: Held = found[0] if found else "not measured"
        return held, held
    order: tuple[Held, ...] = ("held", "in part", "did not hold")
    counts = {held: found.count(held) for held in order if held in found}
    return "in part", f"{', '.join(f'{held} for {count}' for held, count in counts.items())} of {len(found)}"


def _reached(gain: float, claimed: float) -> Held:
    if gain >= NEAR * claimed:
        return "held"
    return "in part" if gain >= HALF * claimed else "did not hold"


def _quality(claim: Claim, own: float | None, baseline: float | None, name: str) -> Verdict:
    share = _ratio(own, baseline)
    if share is None:
        return Verdict("not measured", f"{name} was not measured")
    held: Held = "held" if share >= claim.figure else "did not hold"
    return Verdict(held, f"test {name} {share:.1%} of the baseline's, no worse claimed ({claim.figure:.0%} allowed): {held}")


def _steps(claim: Claim, own: Values, baseline: Values) -> Verdict:
    """Steps that a scaler leaves out to find its scale, as it must, are told of and are no sign of anything."""
    count, before = own.get("nonfinite_steps"), baseline.get("nonfinite_steps")
    if count is None or before is None:
        return Verdict("not measured", "no step was taken")
    left_out = own.get("skipped_steps") or 0
    usual = left_out <= (own.get("trainings") or 1) * (HALVINGS + (own.get("steps") or 0) / TRIALS)
    unstable = count > left_out or not usual
    held: Held = "held" if unstable == (claim.of == "overflow") else "did not hold"
    spared = (
        f", {left_out:.0f} of them left out by the scaler of float16{'' if usual else ', more than it needs'}"
        if left_out
        else ""
    )
    claimed = f"{'none' if claim.of == 'finite' else 'some'} claimed, the baseline has {before:.0f}"
    return Verdict(held, f"{count:.0f} steps with a loss or a gradient that is not finite{spared}, {claimed}: {held}")


def _ratio(above: Any, below: Any) -> float | None:
    return above / below if above is not None and below else None
