"""Everything that RecBole 1.2.1 needs to be imported, configured and given its data as a part of another program.

Used in RecBole's own environment alone: no other file names a module of RecBole, and nothing here is imported elsewhere.
"""

import logging
import os
import pkgutil
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turborec.engine import world
from turborec.errors import UserError, closest
from turborec.recbole.job import Job, Times

log = logging.getLogger(__name__)

ROW = "turborec_row"
"""A field that tells the rows of a sequential data set, in order of user and time, whatever part they come into."""

FAMILIES = ("general_recommender", "sequential_recommender")
OTHERS = {
    "context_aware_recommender": "is of the context-aware family, which predicts ratings of given pairs",
    "knowledge_aware_recommender": "is of the knowledge-aware family, whose trainers take turns between two losses",
    "exlib_recommender": "wraps another library's decision trees",
}


@contextmanager
def told() -> Iterator[None]:
    """What RecBole complains of, as a mistake of the user's: its settings and files are."""
    unreadable: type[Exception] = import_module("yaml").YAMLError
    kinds = (
        unreadable,
        ValueError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        AssertionError,
        AttributeError,
        OSError,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pandas and numpy it was written for
            yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except kinds as error:
        if isinstance(error, RuntimeError) and world.lost(error):
            raise  # another process has ended, which is no mistake in settings or files
        raise UserError(f"RecBole refuses this: {type(error).__name__}: {error}") from error


def seed(number: int) -> None:
    """Seed every generator that RecBole draws from."""
    seed_rows(number)
    torch.manual_seed(number % 2**63)


def seed_rows(number: int) -> None:
    """Seed those that its samplers and transforms draw from: torch's belongs to the step that may run meanwhile."""
    random.seed(number)
    np.random.seed(number % 2**32)


def model_class(name: str) -> Any:
    """RecBole's class of this name, small letters or not; `UserError` says why another one cannot run here."""
    base = import_module("recbole.model.abstract_recommender").AbstractRecommender
    known = []
    for family in (*FAMILIES, *OTHERS):
        folder = Path(str(import_module("recbole.model").__path__[0])) / family
        for found in (module.name for module in pkgutil.iter_modules([str(folder)])):
            if found != name.lower():
                known += [found] if family in FAMILIES else []
                continue
            if family in OTHERS:
                raise UserError(f"{name} {OTHERS[family]}: turborec runs RecBole's general and sequential models.")
            values = vars(import_module(f"recbole.model.{family}.{found}")).values()
            return _runnable(next(v for v in values if isinstance(v, type) and v.__name__.lower() == found), base)
    raise UserError(f"RecBole 1.2.1 has no model {name!r}{closest(name.lower(), known)}.")


def _runnable(found: Any, base: Any) -> Any:
    kinds, trainers = import_module("recbole.utils").ModelType, import_module("recbole.trainer")
    if found.type not in (kinds.GENERAL, kinds.SEQUENTIAL):
        raise UserError(f"{found.__name__} is counted, not trained by gradients: there is nothing for turborec's engine to do.")
    if hasattr(trainers, f"{found.__name__}Trainer"):
        raise UserError(f"{found.__name__} has a training procedure of its own ({found.__name__}Trainer): run it in RecBole.")
    if found.calculate_loss is base.calculate_loss:
        raise UserError(f"{found.__name__} has no loss that could be trained.")
    return found


def configured(job: Job, device: torch.device, scratch: Path) -> Any:
    """RecBole's settings for a job: its own defaults and files, read by itself."""
    found = model_class(job.model)
    settings = scratch / "settings.yaml"
    settings.write_text("".join(f"{k}: {v}\n" for k, _, v in (s.partition("=") for s in job.settings)), encoding="utf-8")
    files = [*job.configs, *([str(settings)] if job.settings else [])]
    build = import_module("recbole.config").Config
    with told(), _no_arguments(), _kept_environment():
        config = build(found.__name__, job.dataset, files, {"gpu_id": "", "use_gpu": False})
    _tell_unknown(config)
    config["device"] = device
    # Its caches are pickles, found again by the name of the data set: none are read or written.
    config["checkpoint_dir"] = str(scratch)
    for name in ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path", "log_wandb"):
        config[name] = None
    if job.data is not None:
        config["data_path"] = job.data  # RecBole takes its own ml-100k whatever folder is named
    _refuse(config)
    return config


def _tell_unknown(config: Any) -> None:
    """Warn of settings that RecBole has no use for: it takes any key without a word."""
    known = {*config.internal_config_dict, *(key for keys in config.parameters.values() for key in keys)}
    for key in {*config.file_config_dict, *config.variable_config_dict} - known - {"gpu_id", "use_gpu"}:
        near = closest(key, sorted(map(str, known))) if isinstance(key, str) else ""  # YAML 1.1 reads `on` as a truth value
        log.warning("RecBole declares no setting %r%s: it may be read by nothing.", key, near)


def _refuse(config: Any) -> None:
    """What RecBole can do in its own trainer and turborec does not."""
    modes = set(config["eval_args"]["mode"].values())
    if modes != {"full"}:
        raise UserError(
            f"eval_args has the mode {', '.join(sorted(modes))}: turborec ranks the whole catalogue. Set "
            "eval_args='{split: ..., order: ..., mode: full}' and ranking metrics such as metrics='[Recall, NDCG]'."
        )
    if config["train_neg_sample_args"].get("dynamic"):
        raise UserError("Dynamic negatives depend on the weights of the moment, so their batches could not be made again.")
    if not Path(config["data_path"]).is_dir():
        raise UserError(f"There are no atomic files of {config['dataset']} in {config['data_path']}: name them with --data.")


def loaders(config: Any, times: Times | None) -> tuple[Any, tuple[Any, Any, Any]]:
    """The whole data set, and RecBole's loaders of its parts; None leaves RecBole's own code alone."""
    data = import_module("recbole.data")
    seed(config["seed"])
    with told():
        dataset = data.create_dataset(config)
        if times is not None:
            _prepared(dataset, config, times)
        train, valid, test = data.data_preparation(config, dataset)
    return dataset, (train, valid, test)


def _prepared(dataset: Any, config: Any, times: Times) -> None:
    """Order the events by their exact times and mark the rows, just before RecBole makes tensors of them.

    RecBole sorts by times that it has scaled to 0..1 and rounded to float32. Its sort is stable, so that events whose
    rounded times are equal stay in the order in which they are given to it.
    """
    plain: Callable[[], None] = dataset._change_feat_format
    whole = dataset.benchmark_filename_list is None

    def changed() -> None:
        table = dataset.inter_feat
        if whole and times == "exact" and config["eval_args"]["order"] == "TO" and dataset.time_field in table:
            dataset.inter_feat = table.sort_values(dataset.time_field, kind="stable", ignore_index=True)
        plain()
        if whole and is_sequential(config):
            dataset.inter_feat.update(interaction({ROW: torch.arange(len(dataset.inter_feat))}))

    dataset._change_feat_format = changed


def interaction(columns: dict[str, Tensor]) -> Any:
    """RecBole's container of named columns."""
    return import_module("recbole.data.interaction").Interaction(columns)


def is_sequential(config: Any) -> bool:
    """Whether the model reads histories."""
    return bool(config["MODEL_TYPE"] == import_module("recbole.utils").ModelType.SEQUENTIAL)


def built(config: Any, train: Any) -> Any:
    """A model with freshly drawn weights, the same in every process."""
    found = model_class(config["model"])
    seed(config["seed"])
    with told():
        return found(config, train._dataset).to(config["device"])


def own_values(config: Any, model: Any, train: Any, part: Any) -> dict[str, float]:
    """What RecBole's own Trainer.evaluate says of a model."""
    module: Any = import_module("recbole.trainer.trainer")
    module.get_tensorboard = lambda logger: None  # it would write into the working folder
    with told():
        trainer = module.Trainer(config, model)
        trainer.eval_collector.data_collect(train)
        found = trainer.evaluate(part, load_best_model=False, show_progress=False)
    return {name: float(value) for name, value in found.items()}


def share_norms() -> None:
    """Let the norm of a batch's embeddings, which is no sum over rows, be that of all processes' shares together."""
    import_module("recbole.model.loss").EmbLoss.forward = _shared_norms
    weigh_norms(1.0)


def weigh_norms(weight: float) -> None:
    """Whether this process's rows are a part of the batch (1) or of nothing (0)."""
    import_module("recbole.model.loss").EmbLoss.turborec_weight = weight


def _shared_norms(self: Any, *embeddings: Tensor, require_pow: bool = False) -> Tensor:
    """EmbLoss: the p-norms of the whole batch's embeddings, of which this process's share is that of its rows."""
    rows, total = embeddings[-1].shape[0], embeddings[-1].new_zeros(1)
    for own in (embedding.abs().pow(self.norm).sum() * self.turborec_weight for embedding in embeddings):
        if require_pow:
            total = total + own / self.norm
            continue
        whole = world.added(own.detach().clone())
        # The shares' values add up to the norm, and their gradients to its gradient.
        root = whole.clamp(min=torch.finfo(whole.dtype).tiny) ** (1 / self.norm)
        slope = root ** (1 - self.norm) / self.norm
        total = total + own * slope + (own.detach() * (root / whole.clamp(min=1e-38) - slope))
    return total / rows


@contextmanager
def _no_arguments() -> Iterator[None]:
    """RecBole reads `--key=value` from the command line of whatever program it runs in."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _kept_environment() -> Iterator[None]:
    """RecBole hides all accelerators but the one it was told of from the whole process."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for what RecBole insists on writing."""
    with tempfile.TemporaryDirectory(prefix="turborec-recbole-") as scratch:
        yield Path(scratch)
