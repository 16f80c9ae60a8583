"""Measure RecBole (1.2.1): SASRec, BERT4Rec and GRU4Rec, by its own data set, prefix augmentation, trainer and evaluator.

RecBole makes every event but a user's first one a sample: the events before it, cut to max_length, and itself as label. So
SASRec and GRU4Rec learn one target from each sample of a batch, although every position was computed. BERT4Rec learns the
masked events of each prefix; a masked first event is left out of the loss by RecBole (its index is 0), and not counted.
Its loss is the exact softmax or BPR: a sampled softmax is measured as the exact one.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import Curve, Job, Meter, Stopwatch, events, peak_mib, prepare_process, serve, versions
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

MODELS = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "gru4rec": "GRU4Rec"}


class Limited:
    """A training loader that notes the steps taken with its batches, and ends when they are enough."""

    def __init__(self, loader: Any, meter: Meter) -> None:
        self._loader, self._meter = loader, meter

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            masked = "MASK_INDEX" in batch.interaction
            if self._meter.step(len(batch), int((batch["MASK_INDEX"] > 0).sum()) if masked else len(batch)):
                return


def histories(table: pd.DataFrame, dataset: Any, valid: Any) -> list[torch.Tensor]:
    """RecBole's numbers of the items that each of its users has in the training part; it must hold out what the file does."""
    known, asked = table[table["part"] == "train"], table[table["part"] == "validation"]
    users, items = (dataset.field2token_id[name] for name in ("user_id", "item_id"))
    held_out = valid._dataset.inter_feat
    found = set(zip(held_out["user_id"].tolist(), held_out["item_id"].tolist(), strict=True))
    if found != set(zip(asked["user"].map(users), asked["item"].map(items), strict=True)):
        raise ValueError("RecBole holds out other events than the file says")
    seen = [torch.empty(0, dtype=torch.long)] * len(users)
    for user, history in known["item"].map(items).groupby(known["user"]):
        seen[users[user]] = torch.tensor(history.to_numpy())
    return seen


@contextmanager
def histories_masked(trainer: Any, seen: list[torch.Tensor]) -> Iterator[None]:
    """Let the trainer's evaluator mask the items of each user's history, which RecBole's loader for sequences does not name."""
    ranked = trainer._full_sort_batch_eval

    def masked(batch: Any) -> Any:
        interaction, _, positive_users, positive_items = batch
        history = [seen[user] for user in interaction["user_id"].tolist()]
        rows = torch.repeat_interleave(torch.arange(len(history)), torch.tensor([len(items) for items in history]))
        columns = torch.cat(history)
        other = columns != positive_items[rows]  # a target that is in the history stays a candidate
        return ranked((interaction, (rows[other], columns[other]), positive_users, positive_items))

    trainer._full_sort_batch_eval = masked
    yield
    del trainer._full_sort_batch_eval


def configuration(job: Job, folder: Path) -> Config:
    """RecBole's settings in the job's shape."""
    shape = {
        "sasrec": {"hidden_size": job.width, "inner_size": job.hidden, "n_layers": job.layers, "n_heads": job.heads},
        "bert4rec": {"hidden_size": job.width, "inner_size": job.hidden, "n_layers": job.layers, "n_heads": job.heads},
        "gru4rec": {"embedding_size": job.width, "hidden_size": job.hidden, "num_layers": job.layers},
    }[job.model]
    dropout = {"dropout_prob": job.dropout, "hidden_dropout_prob": job.dropout, "attn_dropout_prob": 0.0}
    return Config(
        model=MODELS[job.model],
        dataset="events",
        config_dict={
            **shape,
            **dropout,
            "mask_ratio": job.mask_share,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "data_path": str(folder),
            "checkpoint_dir": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "position"]},
            "TIME_FIELD": "position",
            "MAX_ITEM_LIST_LENGTH": job.max_length,
            "train_batch_size": job.batch_size,
            "learning_rate": job.learning_rate,
            "epochs": max(1, job.epochs),
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "metrics": ["NDCG"],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 6,
            "use_gpu": False,
            "enable_amp": job.precision == "bfloat16",
            "show_progress": False,
            "state": "ERROR",
            "seed": job.seed,
            "reproducibility": False,  # its deterministic mode may be slower
        },
    )


def measure(job: Job) -> dict[str, Any]:
    """Train for a while or for some epochs, then rank every user's validation event."""
    prepare_process(job)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the trainer writes for TensorBoard where it stands
        preparation = Stopwatch()
        with preparation:
            table = events(job)
            (Path(scratch) / "events").mkdir()
            columns = {"user": "user_id:token", "item": "item_id:token", "place": "position:float"}
            table.rename(columns=columns)[list(columns.values())].to_csv("events/events.inter", sep="\t", index=False)
            config = configuration(job, Path(scratch))
            init_seed(config["seed"], config["reproducibility"])
            dataset = create_dataset(config)
            train, valid, _ = data_preparation(config, dataset)
            model = get_model(config["model"])(config, train._dataset).to(config["device"])
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
            trainer.eval_collector.data_collect(train)
        seen = histories(table, dataset, valid)

        def evaluate() -> float:
            return float(trainer.evaluate(valid, load_best_model=False, show_progress=False)["ndcg@10"])

        meter, curve, epoch = Meter.of(job), Curve(job), 0
        done = False
        while not done:
            curve.begin()
            trainer._train_epoch(Limited(train, meter), epoch, show_progress=False)
            epoch += 1
            if job.epochs:
                meter.pause()
                curve.training.stop()
                with histories_masked(trainer, seen):
                    done = curve.validated(evaluate())
                meter.resume()
            else:
                done = meter.enough
        meter.pause()
        peak = peak_mib()
        with Stopwatch() as ranking:
            evaluate()
    return {
        "peer": "recbole",
        "versions": versions("recbole", "torch", "numpy", "pandas", "scipy"),
        "hidden": job.hidden,
        "batch_size": job.batch_size,
        "loss": "softmax",
        "preparation_seconds": preparation.wall,
        **meter.rates(len(train._dataset)),
        "peak_mib": peak,
        "evaluation_seconds": ranking.wall,
        "evaluation_cpu_seconds": ranking.cpu,
        "evaluation": "Trainer.evaluate, full ranking with the history kept, as RecBole does for sequences; NDCG@10",
        "evaluated_users": len(valid._dataset),
        "curve": curve.points,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Job, measure)
