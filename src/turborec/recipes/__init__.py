"""The recipe of a training, and the recipes that ship with turborec: `<data>/<model>.yaml`, found by name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from turborec.data.loader import Batches
from turborec.data.prepare import Prepare
from turborec.data.schema import FEATURE_NAME
from turborec.data.split import LeaveOneOut, Split
from turborec.engine import world
from turborec.engine.loop import Stage
from turborec.engine.stopping import EarlyStopping
from turborec.errors import UserError, closest
from turborec.evaluate import Evaluation
from turborec.nn.lora import Adapters
from turborec.recipe import Anything, Config, MistakesError, Tree, open_kind, override, read, validate

SourceConfig = TypeVar("SourceConfig", bound=Config)
ModelConfig = TypeVar("ModelConfig", bound=Config)


class Features(Config):
    """Numbers that describe the items, in files of the user's own: found in the raw folder, below TURBOREC_DATA, or here."""

    table: str = Field(min_length=1, description="a .npy of floats, or a .tsv or .csv whose first column is the raw item id")
    ids: str | None = Field(None, min_length=1, description="of a .npy: its rows' raw item ids, one a line")


class Data(Config, Generic[SourceConfig]):
    """Which interactions, cleaned how, split how."""

    source: SerializeAsAny[SourceConfig]
    prepare: Prepare = Prepare()
    split: Split = LeaveOneOut()
    features: Mapping[str, Features] = Field({}, description="by name, such as image: {table: FILE, ids: FILE}")

    @model_validator(mode="after")
    def _features_have_names(self) -> Self:
        for name in self.features:
            if not re.fullmatch(FEATURE_NAME, name):
                raise ValueError(
                    f"features: a table cannot be called {name!r}: expected a letter from a to z, then these, digits and _"
                )
        return self

    @model_validator(mode="after")
    def _given_parts_are_used(self) -> Self:
        said = next((name for name in ("benchmark_filename", "label") if getattr(self.source, name, None)), None)
        if said and self.split.kind != "labelled":
            raise ValueError(
                f"source.{said} says which part each event belongs to, but split is {{kind: {self.split.kind}}}, which makes "
                f"parts of its own: state split={{kind: labelled}}, or state source.{said}=null"
            )
        return self


class Checkpoints(Config):
    """When the state of a training is written down; the best epoch's is always kept."""

    minutes: float = Field(10.0, gt=0.0, description="longest time between two checkpoints within an epoch")
    keep: int = Field(2, ge=1, description="how many of the newest stay")


class Recipe(Config, Generic[SourceConfig, ModelConfig]):
    """Everything that decides what a training computes."""

    data: Data[SourceConfig]
    batches: Batches = Batches()
    model: SerializeAsAny[ModelConfig]
    base: str | None = Field(
        None, min_length=1, description="the folder of a run whose weights training begins with; items are matched by raw id"
    )
    adapters: Adapters | None = Field(None, description="freeze the base, and train a small map beside each of its projections")
    train: Stage = Stage()
    then: tuple[Stage, ...] = Field((), description="further stages, each from the weights of the one before")
    stopping: EarlyStopping = EarlyStopping()
    evaluation: Evaluation = Evaluation()
    select: str = Field("ndcg@10", description="the validation value that chooses the best epoch and stops early")
    anchors: bool = Field(True, description="also evaluate popularity and Markov, the baselines to beat")
    checkpoints: Checkpoints = Checkpoints()
    seed: int = Field(1, ge=0, lt=2**63)

    @field_validator("base")
    @classmethod
    def _base_is_found_from_anywhere(cls, base: str | None) -> str | None:
        return None if base is None else str(Path(base).expanduser().resolve())

    @model_validator(mode="after")
    def _select_is_measured(self) -> "AnyRecipe":
        if self.select not in _measured(self.evaluation):
            raise ValueError(_not_measured(self.select, self.evaluation))
        return self

    @model_validator(mode="after")
    def _compiled_once(self) -> "AnyRecipe":
        if {stage.compile for stage in self.then} - {"none", self.train.compile}:
            raise ValueError("then: what is compiled is decided once for a run, by train.compile: leave it out of other stages")
        if {stage.kernels for stage in self.then} - {"auto", self.train.kernels}:
            raise ValueError("then: kernels are chosen once for a run, by train.kernels: leave it out of other stages")
        return self

    @model_validator(mode="after")
    def _what_is_kept_is_there(self) -> "AnyRecipe":
        if self.train.keep:
            raise ValueError("train.keep: there is no stage before the first: state it of a stage in then")
        for number, stage in enumerate(self.then):
            own = stage.model_dump(include={"schedule", "schedule_epochs"}, exclude_defaults=True)
            if "schedule" in stage.keep and own:
                raise ValueError(f"then.{number}.keep: its schedule is that of the stage before: leave out {min(own)}")
        return self

    @model_validator(mode="after")
    def _sharded_once(self) -> "AnyRecipe":
        if any(stage.exchange.shard != self.train.exchange.shard for stage in self.then):
            raise ValueError("then: exchange.shard must be that of train: a model is shared out once for a run")
        return self

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> "AnyRecipe":
        if self.adapters is not None and self.train.exchange.shard != "none":
            raise ValueError("adapters: what they are added to must lie whole in every process: leave out train.exchange.shard")
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order, for batches of the size that they have in this many processes."""
        found: list[Stage] = []
        for stage in (self.train, *self.then):
            if "schedule" in stage.keep:
                before = found[-1]
                kept = {"schedule": before.schedule, "schedule_epochs": before.schedule_epochs or before.epochs}
                stage = stage.model_copy(update=kept)
            found.append(stage.at(self.batches.total(world.size())))
        return tuple(found)


AnyRecipe = Recipe[Any, Any]


def shipped() -> dict[str, Path]:
    """Name and file of every recipe that ships, in order of name."""
    folder = Path(__file__).parent
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}


def load(name: str, overrides: Iterable[str] = ()) -> AnyRecipe:
    """The recipe called `name` (a shipped one, or a YAML file), with `a.b=value` overrides applied."""
    return from_tree(override(read(find(name)), overrides), f"The recipe {name}")


def find(name: str) -> Path:
    """The file of a shipped recipe or of the user's own."""
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"There is no recipe file {name}.")
    raise UserError(f"No recipe is called {name!r}{closest(name, list(known))}. `turborec recipe list` shows them all.")


def from_tree(tree: Tree, origin: str) -> AnyRecipe:
    """A checked recipe from plain data; the files that `kind` names supply the types of source and model."""
    data = tree.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    parts: list[type[Config]] = []
    mistakes: list[str] = []
    for package, part, path in (("turborec.sources", source, "data.source"), ("turborec.models", tree.get("model"), "model")):
        try:
            parts.append(open_kind(package, part, path, origin))
        except MistakesError as error:
            parts.append(Anything)
            mistakes += error.mistakes
    kind: type[AnyRecipe] = Recipe[parts[0], parts[1]]  # type: ignore[valid-type]
    try:
        recipe = validate(kind, tree, origin)
    except MistakesError as error:
        mistakes += [*error.mistakes, *_unmeasured(tree)]
    if mistakes:
        raise MistakesError(origin, list(dict.fromkeys(mistakes)))
    return recipe


def _unmeasured(tree: Tree) -> list[str]:
    """What is wrong with `select`, which the validator looks at only where all else is right."""
    try:
        evaluation = validate(Evaluation, tree.get("evaluation") or {}, "evaluation")
    except MistakesError:
        return []
    select = tree.get("select")
    return [_not_measured(select, evaluation)] if isinstance(select, str) and select not in _measured(evaluation) else []


def _measured(evaluation: Evaluation) -> list[str]:
    return [metric.name for metric in evaluation.without_lists().metrics]


def _not_measured(select: str, evaluation: Evaluation) -> str:
    return f"select: {select!r} is not among the evaluation's metrics of ranks{closest(select, _measured(evaluation))}"
