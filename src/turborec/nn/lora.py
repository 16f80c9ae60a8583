"""Adapters of low rank: a frozen projection W x and, beside it, a small map B A x that is trained in its place.

Letters: D and O inputs and outputs of a projection, R rank, K experts, B rows.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from turborec.errors import UserError, closest
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context, Linear
from turborec.recipe import Config

SITE = 10_000
"""The first site of the adapters' dropout: far from those of any model."""

Targets = Annotated[
    tuple[str, ...] | None,
    Field(min_length=1, description="projections by name or pattern, such as blocks.*.attention.q; all when null"),
]
Frozen = Annotated[
    Literal["float32", "bfloat16"], Field(description="what the frozen tables and projections are kept in, to save memory")
]


class LoRA(Config):
    """y = W x + alpha / R * B A x (Hu et al., ICLR 2022, arXiv 2106.09685); scalar_gate: what is added, times a learnt number.

    A is drawn uniformly after Kaiming, B is zero at first. The number is sigmoid(theta), one a projection, the same for every
    sequence. That is what a public study of BERT4Rec called iLoRA; it looks at no sequence, and is here to be compared with.
    """

    kind: Literal["lora", "scalar_gate"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on what enters A")
    targets: Targets = None
    frozen: Frozen = "float32"

    @property
    def scale(self) -> float:
        """What the product is multiplied by, beside a gate."""
        return self.alpha / self.rank


class ILoRA(Config):
    """Instance-wise LoRA (Kong et al., NeurIPS 2024, arXiv 2408.10159): each sequence weighs the K parts of one pair A, B.

    y = W x + alpha / (R / K) * sum_k g_k B_k A_k x: expert k owns R / K rows of A and the same columns of B, and g is the
    softmax of a linear map of a vector of the sequence, one for all projections. Deliberate deviations: the released code has
    a small residual network before that map, and trains the router at .3 of the rate; here the vector is normalised.
    """

    kind: Literal["ilora"] = "ilora"
    rank: int = Field(8, ge=1, description="of all experts together")
    experts: int = Field(4, ge=1)
    alpha: float = Field(32.0, gt=0.0)
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="on what enters A")
    targets: Targets = None
    frozen: Frozen = "float32"
    gate: str = Field(
        "base",
        min_length=1,
        description="whose vector of a sequence is looked at: base, the mean of the frozen model's last states, or the folder "
        "of a finished run of a model of sequences",
    )

    @field_validator("gate")
    @classmethod
    def _gate_is_found_from_anywhere(cls, gate: str) -> str:
        return gate if gate == "base" else str(Path(gate).expanduser().resolve())

    @model_validator(mode="after")
    def _ranks_are_dealt(self) -> Self:
        if self.rank % self.experts:
            raise ValueError(f"rank {self.rank} must be divisible by experts {self.experts}: each owns as many")
        return self

    @property
    def scale(self) -> float:
        """What the weighted sum is multiplied by."""
        return self.alpha * self.experts / self.rank


Adapters = Annotated[LoRA | ILoRA, Field(discriminator="kind")]


class Adapter(nn.Module):
    """What is added to one projection."""

    def __init__(self, inputs: int, outputs: int, config: LoRA | ILoRA, site: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, config.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.gate = nn.Parameter(torch.zeros(())) if config.kind == "scalar_gate" else None
        self.instance, self.scale = isinstance(config, ILoRA), config.scale
        self.dropout = Dropout(config.dropout, site)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, L, D] -> [B, L, O], or single states [N, D] -> [N, O]."""
        at = None if context.places is None else context.places[:, None]
        entering = self.dropout(x, context.keys) if x.ndim == 3 else self.dropout(x[:, None], context.keys, at)[:, 0]
        low = F.linear(entering, self.a)
        if self.instance:
            if context.gates is None:
                raise ValueError("expected the gates of every sequence in the context of an instance-wise adapter")
            low = low * (context.gates[:, None] if x.ndim == 3 else context.gates)
        scale = self.scale if self.gate is None else self.scale * self.gate.sigmoid()
        return F.linear(low * scale, self.b)

    def change(self) -> Tensor:
        """What the projection's weight would become greater by: [O, D]. An instance-wise adapter has no such thing."""
        if self.instance:
            raise ValueError("each sequence has a change of its own")
        return self.scale * (1.0 if self.gate is None else self.gate.sigmoid()) * (self.b @ self.a)


def adapt(model: nn.Module, config: LoRA | ILoRA) -> list[str]:
    """Freeze a model and give its wanted projections adapters; their names. A UserError where a pattern finds none.

    What is frozen is marked as another run's, so that no checkpoint of this one carries it. Its names stay.
    """
    names = chosen(model, config.targets)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter._of_base = True  # type: ignore[attr-defined]
    device = next(model.parameters()).device
    for place, name in enumerate(names):
        projection = model.get_submodule(name)
        assert isinstance(projection, Linear)
        adapter = Adapter(projection.in_features, projection.out_features, config, SITE + place)
        projection.adapter = adapter.to(device)
    if config.frozen == "bfloat16":
        _lower(model)
    return names


def chosen(model: nn.Module, targets: Iterable[str] | None) -> list[str]:
    """The projections that the patterns name, in the order of the model; all of them where there are no patterns."""
    known = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    if not known:
        raise UserError("adapters: this model has no projections to adapt: only sequence models have.")
    for pattern in targets or ():
        if table := next((name for name in others if fnmatchcase(name, pattern)), None):
            raise UserError(
                f"adapters.targets: {pattern!r} matches {table!r}, a table of embeddings and no projection. Name projections, "
                f"such as {known[0]!r} or 'blocks.*'."
            )
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"adapters.targets: {pattern!r} matches no projection{closest(pattern, known)}.")
    return [name for name in known if targets is None or any(fnmatchcase(name, pattern) for pattern in targets)]


def merge(model: nn.Module) -> None:
    """Add what the adapters have learnt to the weights, in place, and take them away. A UserError where none can be."""
    adapted = [module for module in model.modules() if isinstance(module, Linear) and module.adapter is not None]
    for module in adapted:
        assert isinstance(module.adapter, Adapter)
        if module.adapter.instance:
            raise UserError("Instance-wise adapters cannot be merged: every sequence has weights of its own.")
    for module in adapted:
        assert isinstance(module.adapter, Adapter)
        with torch.no_grad():
            # In float64, so that what is added is rounded once.
            module.weight.copy_(module.weight.double() + module.adapter.change().double())
        module.adapter = None


def _lower(model: nn.Module) -> None:
    """Keep frozen matrices of projections and tables in bfloat16; norms, biases and positions are small."""
    for module in model.modules():
        table = isinstance(module, nn.Embedding) and not getattr(module, "_read_whole", False)
        if table or isinstance(module, Linear):
            module.weight.data = module.weight.data.bfloat16()
        if table:
            module.register_forward_hook(_wide)


def _wide(table: nn.Module, given: object, rows: Tensor) -> Tensor:
    """Rows that were read go on in float32."""
    return rows.float()
