"""A trained model as a program of its own: histories in, scores of the whole catalogue out, without this package.

Letters: B rows, L positions, V items.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turborec import __version__
from turborec.assembly import Run
from turborec.contract import Counted, Model
from turborec.data.batch import SequenceBatch
from turborec.data.schema import UNKNOWN_TIME
from turborec.errors import UserError
from turborec.files import write_whole

PROGRAM, ITEMS, FACTS = "model.pt2", "items.txt", "export.json"
NEAR = 1e-4
"""How far scores of the program may lie from the model's own: the order of sums in float32."""


class Ranking(nn.Module):
    """Scores of every item after each history, none left out: int64 [B, L] padded with 0 on the right, int64 [B] -> [B, V]."""

    def __init__(self, model: Model, items: int) -> None:
        super().__init__()
        self.model, self.items = model.eval(), items

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Column i - 1 is item i."""
        scorer = self.model.scorer()
        return scorer.score(scorer.users(batch_of(items, lengths)), 1, self.items + 1)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    difference: float  # the greatest, between scores of the program and of the model
    values: dict[str, Any]


def batch_of(items: Tensor, lengths: Tensor) -> SequenceBatch:
    """Histories of users that no store holds, at no known times: int64 [B, L], int64 [B]."""
    nothing = torch.zeros_like(items)
    return SequenceBatch(
        items=items,
        times=nothing + UNKNOWN_TIME,
        targets=nothing,
        lengths=lengths,
        users=torch.zeros_like(lengths) - 1,
        keys=torch.zeros_like(lengths),
    )


def program_of(run: Run, rows: int = 8) -> torch.export.ExportedProgram:
    """The run's model as a program for any number of histories of at most `batches.max_length` events.

    A UserError where the model is counted, eats no histories, or has parts that cannot be written down.
    """
    kind, length = run.recipe.model.kind, run.recipe.batches.max_length
    if isinstance(run.model, Counted) or run.recipe.model.batch is not SequenceBatch:
        raise UserError(
            f"{kind} does not rank by histories alone, so there is no such program of it. `turborec recommend` ranks."
        )
    if getattr(run.recipe.model, "texts", None) is not None:
        raise UserError(f"{kind} makes texts of what a history names, which no program does. `turborec recommend` ranks.")
    example = examples(run, rows)
    dynamic = ({0: torch.export.Dim("rows"), 1: torch.export.Dim("events", max=length)}, {0: torch.export.Dim("rows")})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about itself
            return torch.export.export(Ranking(run.model, run.store.num_items), example, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # whatever torch finds in a model that it cannot write down
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{kind} cannot be exported by torch {torch.__version__}: {type(error).__name__}: {told}") from error


def examples(run: Run, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Histories of random items and lengths, the longest among them: int64 [B, L], int64 [B]."""
    generator, length = torch.Generator().manual_seed(seed), run.recipe.batches.max_length
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0] = length
    items = torch.randint(1, run.store.num_items + 1, (rows, length), generator=generator)
    shown = torch.arange(length) < lengths[:, None]
    return (items * shown).to(run.device), lengths.to(run.device)


def export(run: Run, folder: Path) -> Exported:
    """Write the program, the raw ids of its items, and how to call it, unless its scores are not the model's.

    A UserError where the scores differ, or the folder holds a program already.
    """
    if (folder / PROGRAM).exists():
        raise UserError(f"{folder} holds a program already. Name another folder.")
    program, names = program_of(run), run.store.item_ids.raw(range(run.store.num_items))
    if unfit := next((name for name in names if "\n" in name or "\r" in name), None):
        raise UserError(f"{ITEMS} has an id on each line, and {unfit!r} would take two.")
    with torch.no_grad():
        given = examples(run, 33, seed=1)
        ours = Ranking(run.model, run.store.num_items)(*given)
        theirs = program.module()(*given)
    difference = float((ours - theirs).abs().max())
    if not difference <= NEAR * max(1.0, float(ours.abs().max())):
        raise UserError(
            f"The program's scores differ from the model's by {difference:.3g}: torch has not written down what it is."
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / PROGRAM)
    write_whole(folder / ITEMS, "".join(f"{name}\n" for name in names))
    values = {
        "turborec": __version__,
        "torch": torch.__version__,
        "model": run.recipe.model.kind,
        "run": str(run.folder.resolve()),
        "store": run.store.key,
        "items": run.store.num_items,
        "max_length": run.recipe.batches.max_length,
        "inputs": ["items: int64 [rows, events], oldest first, padded with 0 on the right", "lengths: int64 [rows]"],
        "output": "float32 [rows, items]: column i - 1 is item i, whose raw id is line i of items.txt; none is left out",
        "difference": difference,
    }
    write_whole(folder / FACTS, json.dumps(values, indent=1))
    return Exported(folder, difference, values)
