"""Measure RecTools (0.19): SASRec and BERT4Rec, by its own models, data preparation, Lightning loop and recommender.

A target is a position of a batch whose label is not padding: the loss leaves out the others. An epoch of SASRec shows the
last max_length + 1 events of each user once, one of BERT4Rec the last max_length, a share of them masked.
`rectools.fast_transformers` (0.19) has no trainer for models of ids alone, so there is nothing faster to take.
"""

import logging
import warnings
from typing import Any

import pandas as pd
import torch
from measuring import (
    Curve,
    Job,
    K,
    Meter,
    Stopwatch,
    events,
    ndcg,
    peak_mib,
    prepare_process,
    serve,
    versions,
    without_attention_dropout,
)
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools.columns import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel


class Observer(Callback):
    """Counts steps, and validates after epochs where the job asks for that."""

    def __init__(self, job: Job, preparation: Stopwatch) -> None:
        self.job, self.preparation = job, preparation
        self.meter, self.curve = Meter.of(job), Curve(job)
        self.evaluate: Any = None

    def __deepcopy__(self, _: object) -> "Observer":
        return self  # RecTools copies the trainer it is given

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.preparation.stop()
        without_attention_dropout(pl_module)
        self.curve.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = self.meter.step(len(batch["y"]), int((batch["y"] != 0).sum()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.job.epochs:
            self.meter.pause()
            self.curve.training.stop()
            trainer.should_stop = self.curve.validated(self.evaluate())
            pl_module.train()
            self.curve.begin()
            self.meter.resume()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter.pause()


def build(job: Job, observer: Observer) -> SASRecModel | BERT4RecModel:
    """The peer's model in the job's shape."""

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1,
            accelerator="cpu",
            precision="bf16-mixed" if job.precision == "bfloat16" else "32-true",
            devices=1,
            callbacks=[observer],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    shared: dict[str, Any] = {
        "n_blocks": job.layers,
        "n_heads": job.heads,
        "n_factors": job.width,
        "dropout_rate": job.dropout,
        "session_max_len": job.max_length,
        "batch_size": job.batch_size,
        "loss": job.loss,
        "n_negatives": max(1, job.negatives),
        "lr": job.learning_rate,
        "get_trainer_func": trainer,
    }
    if job.model == "sasrec":
        return SASRecModel(**shared)  # its feed-forward layers are as wide as the model, whatever the job says: less work
    return BERT4RecModel(
        **shared, mask_prob=job.mask_share, transformer_layers_kwargs={"ff_factors_multiplier": job.hidden // job.width}
    )


def measure(job: Job) -> dict[str, Any]:
    """Train for a while or for some epochs, then recommend to every user."""
    facts = {"peer": "rectools", "versions": versions("rectools", "torch", "pytorch-lightning", "numpy", "pandas")}
    if job.model == "gru4rec":
        return facts | {"unsupported": "RecTools has no GRU4Rec"}
    prepare_process(job)
    preparation = Stopwatch()
    preparation.start()
    table = events(job)
    known, asked = table[table["part"] == "train"], table[table["part"] == "validation"]
    frame = known.rename(columns={"user": Columns.User, "item": Columns.Item})[[Columns.User, Columns.Item]].assign(
        **{Columns.Weight: 1.0, Columns.Datetime: pd.to_datetime(known["place"], unit="s")}
    )
    dataset = Dataset.construct(frame)
    observer = Observer(job, preparation)
    model = build(job, observer)

    def evaluate() -> float:
        model.is_fitted = True  # within `fit` it is not yet, and `recommend` would refuse
        lists = model.recommend(asked["user"].to_numpy(), dataset, k=K, filter_viewed=True)
        merged = lists.merge(asked, left_on=[Columns.User, Columns.Item], right_on=["user", "item"])
        return ndcg(merged[Columns.Rank], len(asked))

    observer.evaluate = evaluate
    model.fit(dataset)
    assert model.fit_trainer is not None
    peak = peak_mib()
    with Stopwatch() as ranking:
        value = evaluate()
    return facts | {
        "hidden": job.width if job.model == "sasrec" else job.hidden,
        "batch_size": job.batch_size,
        "loss": job.loss,
        "preparation_seconds": preparation.wall,
        **observer.meter.rates(len(model.fit_trainer.train_dataloader.dataset)),
        "peak_mib": peak,
        "evaluation_seconds": ranking.wall,
        "evaluation_cpu_seconds": ranking.cpu,
        "evaluation": "recommend(k=10, filter_viewed=True) to all users, and NDCG@10 of the lists",
        "evaluated_users": len(asked),
        "ndcg@10": value,
        "curve": observer.curve.points,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("highest")
    serve(Job, measure)
