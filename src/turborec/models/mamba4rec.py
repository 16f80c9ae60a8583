"""Mamba4Rec: layers of Mamba over item ids, which predict the next item at every position."""

from typing import ClassVar, Literal

from pydantic import Field

from turborec.data.batch import DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._next_item import Repeats
from turborec.models._state_space import Ends, StateSpace
from turborec.nn.ssm import Init, Intervals, Layer, Mamba, Shape
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """Mamba4Rec: Efficient Sequential Recommendation with Selective State Space Models (Liu et al. 2024, arXiv 2403.03900).

    As its code has it, a single layer has no residual around Mamba. Deliberate deviation: training predicts at every position.
    """

    kind: Literal["mamba4rec"] = "mamba4rec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch
    stated: ClassVar[tuple[str, ...]] = ("init", "repeat_bias")

    width: int = Field(64, ge=1)
    layers: int = Field(1, ge=1)
    memory: int = Field(32, ge=1, description="states of each of Mamba's channels")
    expand: int = Field(2, ge=1, description="Mamba's channels, as a multiple of the width")
    convolution: int = Field(4, ge=1, description="events that Mamba's convolution sees")
    hidden: int = Field(256, ge=0, description="width of the feed-forward layer; 0: none")
    init: Init = Field("mamba", description="of Mamba; official: all maps normal with deviation 0.02, steps from log 2")
    norm: Literal["pre", "post"] = "post"
    norm_eps: float = Field(1e-12, gt=0.0)
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on the embeddings and on every branch")
    repeat_bias: Repeats = False
    loss: CatalogueLoss = CrossEntropy()

    def build(self, spec: DataSpec) -> StateSpace:
        """The model for data of this shape, with freshly drawn weights."""
        shape = Shape(self.width, self.hidden, self.dropout, self.norm, self.norm_eps, residual=self.layers > 1)
        mixers = (Mamba(self.width, self.memory, self.convolution, self.expand, self.init) for _ in range(self.layers))
        layers = [Layer(shape, [mixer], site) for site, mixer in enumerate(mixers)]
        ends = Ends(self.width, self.norm_eps, True, self.dropout, self.norm == "pre", self.repeat_bias)
        return StateSpace(ends, layers, Intervals(kind="none"), self.loss, spec)
