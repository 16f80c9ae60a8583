"""The levers of a guide that sets out to train MMGCN and DRAGON faster on Music4All without AMP: what it claims, what is known.

The guide has a batch of 2,048 pairs, a validation of all metrics after each epoch, and names six changes and one configuration
of several. It gives no measurement of its own; the figures are what it expects.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from turborec.bench.claims import Claim
from turborec.engine import hardware
from turborec.errors import UserError, closest
from turborec.recipes import AnyRecipe

KEPT = 0.98
"""Share of the baseline's test value from which on a variant counts as no worse."""

STABLE = Claim("finite")
AS_GOOD = Claim("quality", KEPT)


@dataclass(frozen=True)
class Variant:
    """A whole training: the recipe with these overrides."""

    name: str
    overrides: tuple[str, ...]
    claims: tuple[Claim, ...] = ()
    unfit: str | None = None  # why this machine does not train it unless it is asked for by its own name
    lever: str = ""  # '' of a user's own


@dataclass(frozen=True)
class Lever:
    """What the guide says of a change, in our words, and what is known of it without measuring."""

    name: str
    claim: str
    truth: str
    variants: Callable[[AnyRecipe, torch.device], list[Variant]]


def _each_stage(recipe: AnyRecipe, *changes: str) -> tuple[str, ...]:
    """Changes such as `accumulate=2` of every stage."""
    return tuple(f"{stage}.{change}" for stage in stages(recipe) for change in changes)


def stages(recipe: AnyRecipe) -> list[str]:
    """How overrides call the stages of a recipe."""
    return ["train", *(f"then.{number}" for number in range(len(recipe.then)))]


def _larger(recipe: AnyRecipe, times: int, rule: str) -> tuple[str, ...]:
    """Batches `times` as large, and a rate that follows them by a rule."""
    tokens = recipe.batches.tokens
    scaling = "{rule: none}" if rule == "none" else f"{{rule: {rule}, tokens: {tokens}}}"
    return (f"batches.tokens={times * tokens}", *_each_stage(recipe, f"scaling={scaling}"))


def _batch(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    rules = {"linear": "linear", "sqrt": "square_root", "none": "none"}
    return [
        Variant(f"batch-{times}x-{name}", _larger(recipe, times, rule), (Claim("training", float(times)), AS_GOOD, STABLE))
        for times in (2, 4)
        for name, rule in rules.items()
    ]


def _every(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    return [Variant("every-3", ("stopping.every=3",), (Claim("epoch", 1.2), AS_GOOD, STABLE))]


def _few(recipe: AnyRecipe) -> str:
    """Recall and NDCG at 20, and what selects, where that is another."""
    few: list[dict[str, Any]] = [{"kind": "recall", "k": 20}, {"kind": "ndcg", "k": 20}]
    chosen = next(metric for metric in recipe.evaluation.metrics if metric.name == recipe.select)
    own: dict[str, Any] = chosen.model_dump(mode="json")
    return f"evaluation.metrics={json.dumps(few if own in few else [*few, own])}"


def _metrics(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    return [Variant("metrics", (_few(recipe),), (Claim("validation", 1.1), AS_GOOD, STABLE))]


def _accumulate(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    parts = _each_stage(recipe, "accumulate=2")
    return [
        Variant("accumulate-2", parts, (Claim("training", 1.5), AS_GOOD, STABLE)),
        # As the guide's code has it: two batches of the size as before to an update.
        Variant("accumulate-2x2", (*_larger(recipe, 2, "none"), *parts), (Claim("training", 1.5), AS_GOOD, STABLE)),
    ]


def _compiled(device: torch.device) -> tuple[str, ...]:
    """The whole model; recordings are of CUDA devices alone."""
    return ("train.compile=model", *["train.compile_mode=reduce-overhead"] * (device.type == "cuda"))


def _compile(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    return [Variant("compile", _compiled(device), (Claim("training", 1.2), AS_GOOD, STABLE))]


def _width(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    own = getattr(recipe.model, "width", 1)
    unfit = None if own > 1 else f"{recipe.model.kind} has no width to halve"
    claims = (Claim("training", 1.3), Claim("memory", 0.5), STABLE)
    return [Variant(f"width-{max(1, own // 2)}", (f"model.width={max(1, own // 2)}",), claims, unfit)]


def _clip(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    return [Variant("clip-5", _each_stage(recipe, "clip_norm=5.0"), (STABLE,))]


def _amp(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    gains = (Claim("training", 1.5), Claim("memory", 0.6))
    # Of MMGCN alone the guide says that it comes to NaN.
    steps = Claim("overflow" if recipe.model.kind == "mmgcn" else "finite")
    slow = half = None
    if hardware.compute_dtype("auto", device) != torch.bfloat16:
        slow = f"this {device.type} is slower in bfloat16 than in float32, or emulates it: name bfloat16 itself to train it"
    if device.type == "cpu":
        half = "float16 is never fast on a processor, and losses are not scaled there: name float16 itself to train it"
    return [
        Variant("bfloat16", _each_stage(recipe, "precision=bfloat16"), (*gains, STABLE), slow),
        Variant("float16", _each_stage(recipe, "precision=float16"), (*gains, steps), half),
    ]


def _fast(recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    changes = (
        *_larger(recipe, 2, "none"),
        *("stopping.every=3", _few(recipe), *_compiled(device)),
        *_each_stage(recipe, "clip_norm=5.0", "precision=float32"),
    )
    return [Variant("fast", changes, (Claim("epoch", 2.5), AS_GOOD, STABLE))]


LEVERS = (
    Lever(
        "batch",
        "Batches of 4,096 instead of 2,048 make an epoch 2x as fast, with the same convergence where the rate follows, and "
        "without any risk of NaN.",
        "Every batch passes over the whole graph, so that an epoch of half as many batches does half as much of that, which is "
        "a real saving. It also makes half as many updates: whether a quality is reached sooner is another question than how "
        "long an epoch takes.",
        _batch,
    ),
    Lever(
        "every",
        "Validating every few epochs instead of after each makes training 20 to 30 % faster, and the patience of 20 gives "
        "room enough to find the best epoch.",
        "Validations that are left out are saved whole, so the gain is the share of an epoch that one takes. Where patience "
        "counts validations, as in MMRec, 20 of them become 60 epochs and the training longer; here patience counts epochs.",
        _every,
    ),
    Lever(
        "metrics",
        "Recall and NDCG at 20 alone make evaluation 10 to 15 % faster.",
        "The cost of a validation is the matrix of scores and the ranks of the targets, which every metric needs; formulas on "
        "ranks cost next to nothing. Here a validation ranks once whatever is asked for, and draws up no lists.",
        _metrics,
    ),
    Lever(
        "accumulate",
        "Accumulating the gradients of two batches makes training about 1.5x as fast with the memory of one.",
        "It adds nothing to throughput. As the guide's code has it, `accumulate-2x2`, every batch passes over the graph as "
        "before and two of them make an update, so that there are half as many; `accumulate-2` computes each batch in two "
        "parts, which are twice as many passes. What it saves is memory, and most of a graph model's is that of the graph.",
        _accumulate,
    ),
    Lever(
        "compile",
        "torch.compile makes training 20 to 30 % faster, with a slower first epoch, and is transparent.",
        "What compilation can fuse is between the products; a pass over the graph is a sparse product, or a gather and a "
        "scatter in MMRec, which it does not make faster, and around which graphs break. A last batch of another size is "
        "another shape. Nothing shows the gain before it is measured.",
        _compile,
    ),
    Lever(
        "width",
        "Vectors half as wide make training 30 to 40 % faster with half the memory, and may cost accuracy.",
        "Only what has that width shrinks: the features, and MMGCN's first layers, which are as wide as a feature, or 256, "
        "stay what they are.",
        _width,
    ),
    Lever(
        "clip",
        "Gradients clipped to a norm of 5.0 keep the training stable.",
        "A clip bounds a gradient that is finite; one that is not stays so, whatever the bound. Where norms stay below 5.0 it "
        "does nothing at all.",
        _clip,
    ),
    Lever(
        "amp",
        "AMP is 1.5 to 2x as fast with 40 % less memory, works for DRAGON, and comes to NaN in MMGCN, because its loss is a "
        "complex expression and log2 is more stable than log.",
        "The cause is a matrix product that hands float16 to a sigmoid, which is 0 there from about -17 on, and its logarithm "
        "is none; log2 is log times 1.4427. Here the loss is the softplus of a difference in float32, the same number, so "
        "that nothing overflows in it. Sparse products gain little from short numbers.",
        _amp,
    ),
    Lever(
        "fast",
        "All of it together, a batch of 4,096, validation every 3 epochs, two metrics, compilation and the clip, is 2.5 to 3x "
        "as fast with similar accuracy.",
        "The guide's own table multiplies 2 by 1.2 to 2.5, and counts the rarer validation with the same time of an epoch as "
        "the row above. Gains that overlap do not multiply.",
        _fast,
    ),
)

NAMES = tuple(one.name for one in LEVERS)


def variants(names: Iterable[str], own: Iterable[str], recipe: AnyRecipe, device: torch.device) -> list[Variant]:
    """The variants of levers, those named by themselves, and the user's own (`NAME=A.B=VALUE A.B=VALUE`), each once.

    A variant that does not fit the machine is trained nevertheless where it is named by itself.
    """
    known = {lever.name: [_of(lever, one) for one in lever.variants(recipe, device)] for lever in LEVERS}
    single = {one.name: one for some in known.values() for one in some}
    found: dict[str, Variant] = {}
    for name in names:
        if name in known:
            found |= {one.name: found.get(one.name, one) for one in known[name]}
        elif name in single:
            one = single[name]
            found[name] = Variant(one.name, one.overrides, one.claims, None, one.lever)
        else:
            raise UserError(f"There is no lever {name!r}{closest(name, [*known, *single])}.")
    for text in own:
        one = _own(text)
        if one.name in {*found, "baseline"}:
            raise UserError(f"Two variants are called {one.name!r}: give yours another name.")
        found[one.name] = one
    return list(found.values())


def _of(lever: Lever, one: Variant) -> Variant:
    return Variant(one.name, one.overrides, one.claims, one.unfit, lever.name)


def _own(text: str) -> Variant:
    name, equals, changes = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"A variant reads 'NAME=A.B=VALUE A.B=VALUE', got {text!r}.")
    try:
        words = tuple(shlex.split(changes))
    except ValueError as error:
        raise UserError(f"The variant {text!r} cannot be read: {error}.") from error
    if not words or not all("=" in word for word in words):
        raise UserError(f"A variant reads 'NAME=A.B=VALUE A.B=VALUE', got {text!r}.")
    return Variant(name, words)
