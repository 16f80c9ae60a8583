"""Measure RePlay (0.22): SASRec of `replay.nn`, and BERT4Rec of `replay.models.nn`, by its own data, losses and Lightning loop.

A target is a label that the loss does not leave out as padding; of BERT4Rec, a masked event. SASRec also predicts the first
event shown of each user, from padding alone: that is counted, in RePlay's favour (a sixth of its targets where histories are
as short as Beauty's). An epoch shows the last max_length events of each user once, or max_length + 1 for SASRec's labels.
"""

import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from measuring import (
    Curve,
    Job,
    K,
    Meter,
    Stopwatch,
    events,
    peak_mib,
    prepare_process,
    serve,
    versions,
    without_attention_dropout,
)
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import PandasSequentialDataset, ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.optimizer_utils import FatOptimizerFactory
from replay.models.nn.sequential.bert4rec import Bert4Rec, Bert4RecTrainingDataset, Bert4RecValidationDataset
from replay.models.nn.sequential.callbacks import ValidationMetricsCallback
from replay.models.nn.sequential.postprocessors import RemoveSeenItems
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.loss import CESampled
from replay.nn.sequential import SasRec
from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder
from replay.nn.transform import (
    GroupTransform,
    NextTokenTransform,
    RenameTransform,
    UniformNegativeSamplingTransform,
    UnsqueezeTransform,
)
from replay.nn.transform.trim import AdaptiveTrimTransform, TargetAwareAdaptiveTrimTransform
from torch.utils.data import DataLoader

METRIC = f"ndcg@{K}"
BUCKET = 16
"""Sequences that the encoder takes together. Buckets and trimmed batches gave a fifth more targets a second than neither."""


@dataclass(frozen=True)
class Histories:
    """Users in a row, items as numbers from 0."""

    frame: pd.DataFrame  # query_id, item_id (before validation), ground_truth
    items: int

    @classmethod
    def of(cls, job: Job) -> "Histories":
        """The job's events before the test part."""
        table = events(job)
        table["item"], names = pd.factorize(table["item"], sort=True)
        known, asked = table[table["part"] == "train"], table[table["part"] == "validation"]
        frame = pd.DataFrame(
            {"item_id": known.groupby("user")["item"].agg(list), "ground_truth": asked.groupby("user")["item"].agg(list)}
        ).dropna()
        frame["query_id"] = range(len(frame))
        return cls(frame.reset_index(drop=True), len(names))


class Observer(lightning.Callback):
    """Counts steps, and keeps time around validations."""

    def __init__(self, job: Job, preparation: Stopwatch) -> None:
        self.job, self.preparation = job, preparation
        self.meter, self.curve = Meter.of(job), Curve(job)
        self.fitting = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.preparation.stop()
        without_attention_dropout(pl_module)
        self.fitting = True
        self.curve.begin()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.job.model == "sasrec":
            targets = batch["target_padding_mask"].sum()
        else:
            targets = (batch["pad_mask"] & ~batch["token_mask"]).sum()
        trainer.should_stop = self.meter.step(len(batch["positive_labels"]), int(targets))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.meter.pause()
        self.curve.training.stop()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.fitting:
            trainer.should_stop = self.curve.validated(float(trainer.callback_metrics[METRIC]))
            self.curve.begin()
            self.meter.resume()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.fitting = False
        self.meter.pause()


def schema_of(job: Job, items: int, padding: int) -> TensorSchema:
    """One categorical sequence."""
    return TensorSchema(
        TensorFeatureInfo(
            "item_id",
            FeatureType.CATEGORICAL,
            is_seq=True,
            cardinality=items,
            padding_value=padding,
            embedding_dim=job.width,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )


@dataclass(frozen=True)
class Parts:
    """What Lightning's trainer is given."""

    module: lightning.LightningModule
    data: dict[str, Any]  # of fit
    validation: dict[str, Any]
    metrics: lightning.Callback


def sasrec(job: Job, histories: Histories, folder: Path) -> Parts:
    """The model of `replay.nn`, with RePlay's own levers: no column without an event, like lengths together."""
    schema = schema_of(job, histories.items, padding=histories.items)
    histories.frame[["query_id", "item_id"]].to_parquet(folder / "train.parquet")
    longest = int(histories.frame["item_id"].str.len().max())
    histories.frame.assign(seen_ids=histories.frame["item_id"]).to_parquet(folder / "validation.parquet")
    items = {"padding": histories.items}
    metadata = {
        "train": {"item_id": {"shape": job.max_length + 1, **items}},
        "validate": {
            "item_id": {"shape": job.max_length, **items},
            "seen_ids": {"shape": longest, **items},
            "ground_truth": {"shape": 1, "padding": -1},
        },
    }
    train: list[torch.nn.Module] = [
        NextTokenTransform(label_name="item_id", shift=1),
        RenameTransform({"item_id_mask": "padding_mask", "positive_labels_mask": "target_padding_mask"}),
        TargetAwareAdaptiveTrimTransform(["item_id", "positive_labels"]),
    ]
    if job.loss == "sampled_softmax":
        train.append(UniformNegativeSamplingTransform(histories.items, job.negatives))
    train += [
        UnsqueezeTransform("target_padding_mask", -1),
        UnsqueezeTransform("positive_labels", -1),
        GroupTransform({"feature_tensors": ["item_id"]}),
    ]
    validate = [
        RenameTransform({"item_id_mask": "padding_mask"}),
        AdaptiveTrimTransform("item_id"),
        GroupTransform({"feature_tensors": ["item_id"]}),
    ]
    data = ParquetModule(
        batch_size=job.batch_size,
        metadata=metadata,
        transforms={"train": train, "validate": validate},
        train_path=str(folder / "train.parquet"),
        validate_path=str(folder / "validation.parquet"),
    )
    model = SasRec.from_params(
        schema,
        embedding_dim=job.width,
        num_heads=job.heads,
        num_blocks=job.layers,
        max_sequence_length=job.max_length,
        dropout=job.dropout,
        hidden_dim=job.hidden,
    )
    if job.loss == "sampled_softmax":
        model.loss = CESampled()
        model.loss.logits_callback = model.get_logits
    model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, BUCKET)
    module = LightningModule(model, OptimizerFactory(learning_rate=job.learning_rate))
    metrics = ComputeMetricsCallback(["ndcg"], [K], [SeenItemsFilter(histories.items)], histories.items, verbose=False)
    return Parts(module, {"datamodule": data}, {"datamodule": data}, metrics)


def bert4rec(job: Job, histories: Histories, folder: Path) -> Parts:
    """The model of `replay.models.nn`; `CE_restricted` is the exact loss with logits at the masked places alone."""
    schema = schema_of(job, histories.items, padding=0)  # its table has no row for padding, which is never looked at
    frame = histories.frame

    def sequential(column: str) -> PandasSequentialDataset:
        return PandasSequentialDataset(schema, "query_id", "item_id", frame[["query_id"]].assign(item_id=frame[column]))

    known, asked = sequential("item_id"), sequential("ground_truth")
    train = Bert4RecTrainingDataset(known, job.max_length, mask_prob=job.mask_share)
    validate = Bert4RecValidationDataset(known, asked, known, job.max_length)
    module = Bert4Rec(
        schema,
        block_count=job.layers,
        head_count=job.heads,
        hidden_size=job.width,
        max_seq_len=job.max_length,
        dropout_rate=job.dropout,
        enable_embedding_tying=True,
        loss_type="CE" if job.loss == "sampled_softmax" else "CE_restricted",
        loss_sample_count=job.negatives or None,
        negatives_sharing=True,
        optimizer_factory=FatOptimizerFactory(learning_rate=job.learning_rate),
    )
    metrics = ValidationMetricsCallback(["ndcg"], [K], [RemoveSeenItems(known)], histories.items)
    loaders = {
        "train_dataloaders": DataLoader(train, job.batch_size, shuffle=True),
        "val_dataloaders": DataLoader(validate, job.batch_size),
    }
    return Parts(module, loaders, {"dataloaders": loaders["val_dataloaders"]}, metrics)


def measure(job: Job) -> dict[str, Any]:
    """Train for a while or for some epochs, then validate on every user."""
    facts = {"peer": "replay", "versions": versions("replay-rec", "torch", "lightning", "numpy", "pandas", "pyarrow")}
    if job.model == "gru4rec":
        return facts | {"unsupported": "RePlay has no GRU4Rec"}
    prepare_process(job)
    preparation = Stopwatch()
    preparation.start()
    observer = Observer(job, preparation)
    with tempfile.TemporaryDirectory() as scratch:
        histories = Histories.of(job)
        parts = {"sasrec": sasrec, "bert4rec": bert4rec}[job.model](job, histories, Path(scratch))
        trainer = lightning.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            precision="bf16-mixed" if job.precision == "bfloat16" else "32-true",
            devices=1,
            callbacks=[parts.metrics, observer],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if job.epochs else 0,
        )
        trainer.fit(parts.module, **parts.data)
        peak = peak_mib()
        trainer.limit_val_batches = 1.0
        with Stopwatch() as ranking:
            found = trainer.validate(parts.module, verbose=False, **parts.validation)
    return facts | {
        "hidden": job.hidden if job.model == "sasrec" else 4 * job.width,
        "batch_size": job.batch_size,
        "loss": job.loss,
        "preparation_seconds": preparation.wall,
        **observer.meter.rates(len(histories.frame)),
        "peak_mib": peak,
        "evaluation_seconds": ranking.wall,
        "evaluation_cpu_seconds": ranking.cpu,
        "evaluation": "Trainer.validate with the seen items filtered, NDCG@10",
        "evaluated_users": len(histories.frame),
        "ndcg@10": found[0][METRIC],
        "curve": observer.curve.points,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    serve(Job, measure)
