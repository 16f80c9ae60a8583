"""What a recipe describes, put together: data, model and device side by side, and how well the model ranks."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from turborec import base, stores
from turborec.contract import Counted, Model
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.loader import evaluation_batches
from turborec.data.store import Part, Store
from turborec.engine import hardware, world
from turborec.engine.loop import Stage
from turborec.engine.sharding import numbers_of, whole_model
from turborec.errors import UserError
from turborec.evaluate import Evaluation, Result, evaluate
from turborec.losses import Criterion
from turborec.nn.ssm import lower
from turborec.recipe import open_kind
from turborec.recipes import AnyRecipe


@dataclass(frozen=True)
class Assembly:
    """A recipe with all that it names, ready to train or to rank."""

    recipe: AnyRecipe
    store: Store
    model: Model
    device: torch.device


@dataclass(frozen=True)
class Run(Assembly):
    """A training under way or done: an assembly, and the folder that its results are written to."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model has."""

    total: int
    body: int  # all that does not grow with the catalogue
    tables: int  # what has a row, or a number, for every item
    trained: int


def parameters(model: Model, items: int) -> Parameters:
    """Of a model for so many items, those that other processes hold among them."""
    numbers = {name: numbers_of(parameter) for name, parameter in model.named_parameters()}
    tables = sum(numbers[name] for name in base.item_rows(model, items))
    total = sum(numbers.values())
    trained = sum(numbers[name] for name, parameter in model.named_parameters() if parameter.requires_grad)
    return Parameters(total, total - tables, tables, trained)


def without_data(recipe: AnyRecipe, items: int) -> Parameters:
    """Of the recipe's model for so many items. A UserError where it needs to see them."""
    return parameters(shape_of(recipe, items), items)


def shape_of(recipe: AnyRecipe, items: int) -> Model:
    """The recipe's model for so many items, built without memory or data. A UserError where it needs to see them."""
    if recipe.model.batch is not SequenceBatch:
        raise UserError(f"{recipe.model.kind} is built from who has what: its parameters are known with its data.")
    with torch.device("meta"):
        model: Model = recipe.model.build(DataSpec(1, items, recipe.batches.max_length))
        if recipe.adapters is not None:
            base.add_adapters(model, recipe)
    return model


def assemble(recipe: AnyRecipe, store: Store, device: str = "auto") -> Assembly:
    """The recipe's model for this store, with freshly drawn weights, on the device it computes on."""
    hardware.remember_few_shapes()
    chosen = hardware.device_of(world.local_device(device))
    torch.manual_seed(recipe.seed)  # the one draw from a global generator: the initial weights
    model = recipe.model.build(stores.spec_of(store, recipe))
    if recipe.adapters is not None:
        base.put_on(model, recipe, store)
    if isinstance(model, Counted):
        chosen = torch.device("cpu")  # counting is sparse work in float64, nothing for an accelerator
    recipe.train.exchange.apply(model)  # before it goes to a device, which may have no room for all of it
    model = model.to(chosen)
    lower(model, recipe.train.kernels, chosen)
    if recipe.train.recompute:
        recompute_layers(model)
    compile_parts(model, recipe.train)
    return Assembly(recipe, store, model, chosen)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the model's stacks."""
    return [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]


def recompute_layers(model: nn.Module) -> None:
    """Let every layer forget what it computed until gradients ask for it (Chen et al. 2016, arXiv 1604.06174), in place.

    Dropout goes by the keys of the rows, so it is the same both times. A UserError where there are no layers.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError("train.recompute: this model has no stack of layers whose activations could be computed again.")
    for layer in layers:
        plain = layer.forward
        layer.forward = partial(checkpoint, plain, use_reentrant=False, preserve_rng_state=False)


def compile_parts(model: nn.Module, stage: Stage) -> None:
    """Compile what the stage says, in place: layers of a stack share their code, and the names of the weights stay.

    Shapes are dynamic, so that the widths of batches do not each compile anew. A loss is left as it is: its tiles are formed
    by hand, and what it asks of the numbers on its way would end a graph at each question.
    """
    for module in model.modules() if stage.compile == "model" else ():
        if isinstance(module, Criterion):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign, no-untyped-call]
    for part in {"none": [], "layers": layers_of(model), "model": [model]}[stage.compile]:
        part.compile(dynamic=True, mode=stage.compile_mode)


def measure(assembly: Assembly, part: Part, model: Model | None = None, config: Evaluation | None = None) -> Result:
    """Rank the part's targets by the assembly's model, or another one on the same data, as the recipe or `config` says.

    Each process ranks a share of the users, and all of them find the same result: what is counted are whole numbers.
    """
    config, shown = config or assembly.recipe.evaluation, assembly.recipe.batches
    batches = evaluation_batches(assembly.store, part, shown, config.users(assembly.store, part))
    share = islice(batches, world.rank(), None, world.size())
    model = whole(assembly) if model is None else model
    model.eval()
    device = torch.device("cpu") if isinstance(model, Counted) else assembly.device
    with torch.no_grad():
        result = evaluate(model.scorer(), share, assembly.store, part, config, device, shown.max_length, world.add_up)
    card = {**result.card, "request_time": shown.request_time}
    if assembly.recipe.model.batch is SequenceBatch:  # models of pairs are shown no windows
        card["training_windows"] = shown.model_dump(include={"max_length", "coverage", "overlap", "seams"})
    if options := stated(assembly.recipe) if not isinstance(model, Counted) else {}:
        if "features" in options or getattr(assembly.recipe.model, "features", None):
            options["features"] = used_features(assembly)
        card["model_options"] = options
    return replace(result, card=card)


def used_features(assembly: Assembly) -> dict[str, dict[str, Any]]:
    """The feature tables that the model reads: numbers of an item, how many items have some, and the table's checksum."""
    card = assembly.store.card
    wanted = getattr(assembly.recipe.model, "features", None) or card.get("features", {})
    return {
        name: {
            **{fact: card["features"][name][fact] for fact in ("width", "items")},
            "sha256": card["files"].get(f"features.{name}.npy", {}).get("sha256"),
        }
        for name in wanted
    }


def stated(recipe: AnyRecipe) -> dict[str, Any]:
    """What a result's card says of the model beside its name: the settings that the model's config has marked so."""
    names = set(getattr(recipe.model, "stated", ()))
    options: dict[str, Any] = recipe.model.model_dump(mode="json", include=names) if names else {}
    return options


def whole(assembly: Assembly) -> Model:
    """The model, with what other processes hold of it where they do: every process must ask."""
    with torch.random.fork_rng(devices=[]):  # another of its shape draws weights, which are not used
        return whole_model(assembly.model, lambda: assembly.recipe.model.build(stores.spec_of(assembly.store, assembly.recipe)))


def anchor(assembly: Assembly, kind: str) -> Model:
    """The counted model of this kind on the same data, counted."""
    config: Any = open_kind("turborec.models", {"kind": kind}, "anchors", "turborec")()
    model: Counted = config.build(stores.spec_of(assembly.store, assembly.recipe))
    model.count(assembly.store.training())
    return model
