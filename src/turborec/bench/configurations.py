"""The eight configurations of a public study of BERT4Rec, measured as it meant to: warm, in turns, each proven to be on.

Half of them train the whole model, half instance-wise adapters beside a frozen one; both plain, in reduced precision, compiled.
"""

from dataclasses import dataclass

import torch

from turborec.bench.evidence import Evidence
from turborec.bench.levers import changed
from turborec.engine import hardware
from turborec.errors import UserError
from turborec.recipes import AnyRecipe

ADAPTERS = 'adapters={{"kind": "ilora", "rank": 8, "experts": 4, "frozen": "{frozen}"}}'


@dataclass(frozen=True)
class Configuration:
    """What is on, of what the study compares."""

    name: str
    amp: bool = False
    compiled: bool = False
    adapted: bool = False
    replayed: bool = False  # CUDA records whole steps, and replays them

    def overrides(self, recipe: AnyRecipe, device: torch.device) -> tuple[str, ...]:
        """What makes the recipe so. A UserError where this machine or model cannot be."""
        if self.replayed and device.type != "cuda":
            raise UserError("recordings are replayed on CUDA devices alone")
        if self.adapted and recipe.model.kind != "bert4rec":
            raise UserError("only bert4rec has instance-wise adapters")
        lowered = hardware.compute_dtype("auto", device)
        if self.amp and lowered == torch.float32:
            raise UserError(f"this {device.type} has no reduced precision that is fast")
        found = ["train.precision=float32", "train.compile=none", "train.compile_mode=default", "train.replay=false"]
        if self.amp:
            found[0] = f"train.precision={str(lowered).removeprefix('torch.')}"
        if self.compiled:
            found[1] = "train.compile=layers"
        if self.replayed:
            found[3] = "train.replay=true"
        frozen = "bfloat16" if self.amp and lowered == torch.bfloat16 else "float32"
        return (*found, ADAPTERS.format(frozen=frozen) if self.adapted else "adapters=null")

    def shown(self, seen: Evidence, trained: float) -> str | None:
        """Why it was not what it is called, by what was seen of its steps and the share of parameters it trains; else None."""
        lowered = seen.main_type() in ("bfloat16", "float16")
        if not self.compiled and not self.replayed and lowered != self.amp:
            return f"most of its products ran in {seen.main_type()}"
        if self.compiled != (seen.regions > 0):
            return f"{seen.regions} calls of compiled code were seen a step"
        if self.replayed and not seen.replays:
            return "nothing was replayed"
        if self.adapted != (trained < 1):
            return f"{trained:.1%} of the parameters were trained"
        return None


EIGHT = (
    Configuration("none"),
    Configuration("amp", amp=True),
    Configuration("compile", compiled=True),
    Configuration("amp + compile", amp=True, compiled=True),
    Configuration("ilora", adapted=True),
    Configuration("ilora + amp", adapted=True, amp=True),
    Configuration("ilora + amp + compile", adapted=True, amp=True, compiled=True),
    Configuration("ilora + amp + compile, reduced overhead", adapted=True, amp=True, compiled=True, replayed=True),
)

REPLAYED = (
    Configuration("amp + replay", amp=True, replayed=True),
    Configuration("ilora + amp + replay", adapted=True, amp=True, replayed=True),
)
"""Not of the study: what CUDA devices gain most from."""


def possible(recipe: AnyRecipe, device: torch.device) -> tuple[dict[str, AnyRecipe], dict[str, str]]:
    """The recipes of those that can be measured here, by name, and why the others cannot."""
    recipes: dict[str, AnyRecipe] = {}
    unfit: dict[str, str] = {}
    for one in EIGHT:
        try:
            recipes[one.name] = changed(recipe, one.overrides(recipe, device))
        except UserError as error:
            unfit[one.name] = str(error)
    return recipes, unfit
