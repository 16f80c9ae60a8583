"""S5Rec: state-space layers whose steps are the time between events, over item ids."""

from typing import ClassVar, Literal

from pydantic import Field

from turborec.data.batch import DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._next_item import Repeats
from turborec.models._state_space import Ends, StateSpace
from turborec.nn.ssm import S5, Intervals, Layer, Parametrisation, Shape
from turborec.recipe import Config as BaseConfig


class Config(BaseConfig):
    """S5 (Smith, Warrington and Linderman 2023, arXiv 2208.04933) in the place that Mamba has in Mamba4Rec (arXiv 2403.03900).

    What SS4Rec (arXiv 2502.08132) adds to it is Mamba after each S5.
    """

    kind: Literal["s5rec"] = "s5rec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch
    stated: ClassVar[tuple[str, ...]] = ("intervals", "parametrisation", "repeat_bias")

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    states: int = Field(32, ge=1, description="complex")
    hidden: int = Field(256, ge=0, description="width of the feed-forward layer; 0: none")
    intervals: Intervals = Intervals()
    parametrisation: Parametrisation = Field("stable", description="faithful overflows where training makes a rate positive")
    norm: Literal["pre", "post"] = "post"
    norm_eps: float = Field(1e-12, gt=0.0)
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on the embeddings and on every branch")
    repeat_bias: Repeats = False
    loss: CatalogueLoss = CrossEntropy()

    def build(self, spec: DataSpec) -> StateSpace:
        """The model for data of this shape, with freshly drawn weights."""
        shape = Shape(self.width, self.hidden, self.dropout, self.norm, self.norm_eps)
        mixers = (S5(self.width, self.states, self.parametrisation) for _ in range(self.layers))
        layers = [Layer(shape, [mixer], site) for site, mixer in enumerate(mixers)]
        ends = Ends(self.width, self.norm_eps, True, self.dropout, self.norm == "pre", self.repeat_bias)
        return StateSpace(ends, layers, self.intervals, self.loss, spec)
