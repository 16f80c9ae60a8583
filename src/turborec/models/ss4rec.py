"""SS4Rec: state-space layers whose steps are the time between events, and Mamba, in turns, over item ids."""

from typing import ClassVar, Literal

from pydantic import Field

from turborec.data.batch import DataSpec, SequenceBatch
from turborec.losses import CatalogueLoss, CrossEntropy
from turborec.models._next_item import Repeats
from turborec.models._state_space import Ends, StateSpace
from turborec.nn.ssm import S5, Init, Intervals, Layer, Mamba, Parametrisation, Shape
from turborec.recipe import Config as BaseConfig

Mixer = Literal["s5", "mamba"]


class Config(BaseConfig):
    """SS4Rec: Continuous-Time Sequential Recommendation with State Space Models (Xiao et al. 2025, arXiv 2502.08132).

    As its code has it: no positions, no norm before the first layer, one norm for both mixers of a layer, no feed-forward
    layer; all of these can be chosen. Deliberate deviations: by default the gap of an event is the one before it, so that
    nothing is known of the moment of the request (`batches.request_time: target` is the code's way), steps are one for each
    event and the logarithm of days besides in place of seconds, and the rates of S5 stay below zero; training predicts at
    every position.
    """

    kind: Literal["ss4rec"] = "ss4rec"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch
    stated: ClassVar[tuple[str, ...]] = ("mixers", "intervals", "parametrisation", "init", "repeat_bias")

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    mixers: tuple[Mixer, ...] = Field(("s5", "mamba"), min_length=1, max_length=2, description="of each layer, in this order")
    states: int = Field(32, ge=1, description="of S5, complex")
    memory: int = Field(32, ge=1, description="states of each of Mamba's channels")
    expand: int = Field(2, ge=1, description="Mamba's channels, as a multiple of the width")
    convolution: int = Field(4, ge=1, description="events that Mamba's convolution sees")
    hidden: int = Field(0, ge=0, description="width of a feed-forward layer after the mixers; 0: none")
    intervals: Intervals = Intervals()
    parametrisation: Parametrisation = Field(
        "stable", description="of S5; faithful overflows where training makes a rate positive"
    )
    init: Init = Field("mamba", description="of Mamba; official: as SS4Rec's code leaves it")
    norm: Literal["pre", "post"] = "post"
    norm_eps: float = Field(1e-12, gt=0.0)
    shared_norm: bool = Field(True, description="one norm for all mixers of a layer")
    embedding_norm: bool = Field(False, description="normalise what the first layer sees")
    embedding_dropout: bool = Field(False, description="drop some of what the first layer sees")
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="on every residual branch")
    repeat_bias: Repeats = False
    loss: CatalogueLoss = CrossEntropy()

    def build(self, spec: DataSpec) -> StateSpace:
        """The model for data of this shape, with freshly drawn weights."""
        shape = Shape(self.width, self.hidden, self.dropout, self.norm, self.norm_eps, self.shared_norm)
        layers = [Layer(shape, [self._mixer(name) for name in self.mixers], site) for site in range(self.layers)]
        dropout = self.dropout if self.embedding_dropout else 0.0
        ends = Ends(self.width, self.norm_eps, self.embedding_norm, dropout, self.norm == "pre", self.repeat_bias)
        intervals = self.intervals if "s5" in self.mixers else Intervals(kind="none")
        return StateSpace(ends, layers, intervals, self.loss, spec)

    def _mixer(self, name: Mixer) -> S5 | Mamba:
        if name == "s5":
            return S5(self.width, self.states, self.parametrisation)
        return Mamba(self.width, self.memory, self.convolution, self.expand, self.init)
