"""A model class of RecBole as a model of turborec's: its loss as a sum with its count, its scores as a scorer."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import Loss, Model, Term
from turborec.engine import world
from turborec.engine.loop import Stage
from turborec.errors import UserError
from turborec.nn import keyed
from turborec.recbole import shims
from turborec.recbole.data import MASKED, Rows
from turborec.recipe import Config

TOLERANCE = 1e-4
"""By how much the loss of a batch may differ from that of its halves together, relatively, before rows count as coupled."""


class Adapted(Model):
    """RecBole's model within turborec's contract."""

    def __init__(self, recbole: Any, config: Any) -> None:
        """Dropout becomes keyed by row, so that it is the same in any number of processes; nothing else changes."""
        super().__init__()
        self.recbole: Any = recbole
        self._items, self._item_field = int(recbole.n_items), config["ITEM_ID_FIELD"]
        self._draw = _Draw()
        _key_dropout(recbole, self._draw)

    def forward(self, batch: Rows) -> Loss:
        """RecBole's mean over the rows, times their number; a tuple of losses is as many terms."""
        if not batch.targets and MASKED in batch.interaction:
            return self._nothing()  # RecBole would divide by the number of masked events
        self._draw.begin(batch, world.rank())
        shims.weigh_norms(0.0 if batch.idle else 1.0)
        with shims.told():
            found = self.recbole.calculate_loss(batch.interaction)
        parts = found if isinstance(found, tuple) else (found,)
        names = [f"loss_{number}" for number in range(1, len(parts) + 1)] if len(parts) > 1 else ["objective"]
        # Every process must have a gradient for every parameter, also for one that this batch does not use.
        touched = self._zero() if world.size() > 1 else 0.0
        terms = {
            name: Term(part.sum() * batch.targets + touched, batch.targets) for name, part in zip(names, parts, strict=True)
        }
        return Loss(terms)

    def scorer(self) -> "FullSort":
        """RecBole's own scores of the whole catalogue, from the weights as they are now."""
        for name in getattr(self.recbole, "other_parameter_name", ()):
            if name.startswith("restore_") or name == "i_embedding":  # what it has computed from weights of another moment
                setattr(self.recbole, name, None)
        return FullSort(self.recbole, self._items, self._item_field)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Some models of RecBole draw graphs when they are put into training."""
        shims.seed(generator.initial_seed())

    def _nothing(self) -> Loss:
        return Loss({"objective": Term(self._zero(), 0)})

    def _zero(self) -> Tensor:
        return torch.stack([p.flatten()[:1].sum() for p in self.parameters() if p.requires_grad]).sum() * 0


class FullSort:
    """Scores by `full_sort_predict`, or pair by pair where a model has none."""

    def __init__(self, recbole: Any, items: int, item_field: str) -> None:
        """`items`: those of RecBole, the padding among them."""
        self.recbole, self.items, self.item_field = recbole, items, item_field

    def users(self, batch: Rows) -> Tensor:
        """The scores of all items: [B, V + 1]."""
        with shims.told():
            try:
                found: Tensor = self.recbole.full_sort_predict(batch.interaction)
            except NotImplementedError:
                found = torch.cat(list(self._pairs(batch.interaction)))
        return found.float().view(-1, self.items)

    def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
        """[B, V + 1] -> [B, hi - lo]."""
        return state[:, lo:hi]

    def _pairs(self, interaction: Any) -> Iterator[Tensor]:
        """The scores of one row after the other."""
        for row in range(len(interaction)):
            pairs = interaction[[row]].repeat(self.items)
            device = pairs[next(iter(pairs))].device
            pairs.update(shims.interaction({self.item_field: torch.arange(self.items, device=device)}))
            yield self.recbole.predict(pairs).flatten()


class _Draw:
    """What the dropout of a step draws from."""

    def __init__(self) -> None:
        self.sites = 0  # places of the model that draw
        self.step, self.numbers = 0, torch.zeros(0, dtype=torch.int64)

    def begin(self, batch: Rows, place: int) -> None:
        """Begin a step; what is random besides, and not known here, is drawn by each process for itself."""
        self.step, self.numbers = batch.key, batch.users
        torch.manual_seed((batch.key + place) % 2**63)

    def keys(self, x: Tensor) -> Tensor:
        """A key for each of x's first places: of the row where they are rows, else of the place: [B]."""
        numbers = self.numbers if len(self.numbers) == len(x) else torch.arange(len(x), device=x.device)
        return keyed.mix(numbers + self.step)


class RowDropout(nn.Module):
    """Dropout of a tensor whose first places are rows, whatever its other shape."""

    def __init__(self, rate: float, site: int, draw: _Draw) -> None:
        super().__init__()
        self.keyed, self._draw = keyed.Dropout(rate, site), draw

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or not len(x):
            return x
        flat: Tensor = self.keyed(x.reshape(len(x), 1, -1), self._draw.keys(x))
        return flat.view(x.shape)


def _key_dropout(model: nn.Module, draw: _Draw) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p < 1:
                draw.sites += 1
                setattr(parent, name, RowDropout(child.p, draw.sites, draw))


class Learner(Config):
    """RecBole's optimizers by their names, as torch has them: weight decay is the L2 penalty, but for adamw."""

    kind: Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"] = "adam"
    lr: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters."""
        kinds: dict[str, Any] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": torch.optim.SGD,
            "adagrad": torch.optim.Adagrad,
            "rmsprop": torch.optim.RMSprop,
        }
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.kind == "sparse_adam":
            found: torch.optim.Optimizer = torch.optim.SparseAdam(parameters, lr=self.lr)
            return found
        found = kinds[self.kind](parameters, lr=self.lr, weight_decay=self.weight_decay)
        return found


def stage_of(config: Any) -> Stage:
    """RecBole's training settings as a stage of turborec's."""
    norm = config["clip_grad_norm"] or {}
    if norm.get("norm_type", 2) != 2:
        raise UserError(f"clip_grad_norm has norm_type {norm['norm_type']}: turborec clips the Euclidean norm, norm_type 2.")
    kinds = Learner.model_fields["kind"].annotation
    kind = str(config["learner"]).lower()
    if kind not in getattr(kinds, "__args__", ()):
        raise UserError(f"RecBole knows no learner {config['learner']!r} and would take adam: state one of {kinds}.")
    learner = Learner(kind=kind, lr=float(config["learning_rate"]), weight_decay=float(config["weight_decay"] or 0.0))  # type: ignore[arg-type]
    stage = Stage(
        epochs=int(config["epochs"]),
        clip_norm=float(norm["max_norm"]) if "max_norm" in norm else None,
        precision="auto" if config["enable_amp"] else "float32",
    )
    return stage.model_copy(update={"optimizer": learner})


def coupled(model: Adapted, batch: Rows) -> bool:
    """Whether the loss is something else than a mean over rows, `EmbLoss` aside: then no process can have a share of it."""
    rows = len(batch.interaction)
    if rows < 4:
        return False
    shims.seed(batch.key)
    model.train()  # some draw the graphs then that their loss needs
    model.eval()
    halves = [torch.arange(0, rows // 2), torch.arange(rows // 2, rows)]
    found = []
    with torch.no_grad():
        for numbers in (torch.arange(rows), *halves):
            part = batch.interaction[numbers]
            targets = int((part[MASKED] > 0).sum()) if MASKED in part else len(part)
            share = Rows(part, numbers, batch.key, targets, idle=True)  # without the norms, which are shared apart
            found.append((sum(float(term.sum) for term in model(share).terms.values()), targets))
    (whole, targets), *others = found
    apart = sum(value for value, _ in others)
    return abs(whole - apart) > TOLERANCE * max(abs(whole), float(targets))
