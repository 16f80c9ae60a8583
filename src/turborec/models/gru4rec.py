"""GRU4Rec: a gated recurrent network over item ids that predicts the next item at every position.

Letters: B rows, L positions, D width, H hidden width, V items.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model
from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._next_item import NextItem, Repeats
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context, Linear
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Session-based Recommendations with Recurrent Neural Networks (Hidasi et al., ICLR 2016, arXiv 1511.06939).

    Deliberate deviations: a loss over the whole catalogue in place of in-batch negatives (arXiv 2309.07602), one table for
    both ends, and dropout keyed by row between the layers. The recurrence itself is PyTorch's, so adapters do not reach it.
    """

    kind: Literal["gru4rec"] = "gru4rec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch
    stated: ClassVar[tuple[str, ...]] = ("repeat_bias",)

    width: int = Field(64, ge=1)
    hidden: int = Field(128, ge=1, description="width of the recurrent state")
    layers: int = Field(1, ge=1)
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on the embeddings and on what each layer puts out")
    repeat_bias: Repeats = False
    loss: CatalogueLoss = CrossEntropy()

    def build(self, spec: DataSpec) -> "GRU4Rec":
        """The model for data of this shape, with freshly drawn weights."""
        return GRU4Rec(self, spec)


class GRU4Rec(Model):
    """The module; its item table serves both ends."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(spec.items + 1, config.width, padding_idx=0)
        sizes = [config.width] + [config.hidden] * config.layers
        self.layers = nn.ModuleList(nn.GRU(size, config.hidden, batch_first=True) for size in sizes[:-1])
        self.dropouts = nn.ModuleList(Dropout(config.dropout, site) for site in range(config.layers + 1))
        self.output = Linear(config.hidden, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.head = NextItem(config.loss, config.repeat_bias, spec)
        self._initialise()

    def _initialise(self) -> None:
        """Items and output normal with deviation 0.02, recurrent matrices orthogonal, input matrices Xavier, biases zero."""
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.xavier_normal_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        for name, parameter in self.layers.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.chunk(3):
                    nn.init.orthogonal_(gate)
            elif "weight_ih" in name:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def forward(self, batch: SequenceBatch) -> Loss:
        """The loss of predicting every target of the batch."""
        asked = self.asked(batch)
        length = asked.targets.shape[1]
        context = Context(keys=asked.keys).of(asked.where // length, asked.where % length)
        states = self._encode(asked).flatten(0, 1).index_select(0, asked.where)
        return self.head.loss(self._project(states, context), self.items.weight, asked)

    def asked(self, batch: SequenceBatch, again: bool = False) -> AskedBatch:
        """The batch with the places of its targets."""
        return self.head.asked(batch, again)

    def scorer(self) -> DotProduct:
        """Scores by the state after the last event."""
        return self.head.scorer(self._last_state, self.items.weight)

    def _last_state(self, batch: SequenceBatch) -> Tensor:
        """[B, D]."""
        states = self._encode(batch)
        last = states[torch.arange(len(states), device=states.device), batch.last()]
        return self._project(last, Context(keys=batch.keys))

    def _encode(self, batch: SequenceBatch) -> Tensor:
        """[B, L] -> [B, L, H]; the recurrence never looks ahead, so padding on the right reaches no real position."""
        x: Tensor = self.dropouts[0](self.items(batch.items), batch.keys)
        for layer, dropout in zip(self.layers, self.dropouts[1:], strict=True):
            x = dropout(layer(x)[0], batch.keys)
        return x

    def _project(self, states: Tensor, context: Context) -> Tensor:
        """[N, H] -> [N, D]."""
        projected: Tensor = self.norm(self.output(states, context))
        return projected
