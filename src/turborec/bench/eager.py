"""Plain PyTorch, as a good engineer writes it on the first day: what every lever is measured against.

One sample at a time from a Dataset through a DataLoader, every row padded to the full length, stock encoder layers, the
logits of all items, stock AdamW. The mathematics is that of the recipe: the same rows and targets, widths, pre-norm blocks,
heads and tables, clipping; dropout on attention weights is off, as in turborec, because it would cost this side its fast
kernel. The loss is the exact cross-entropy whatever the recipe's is, the optimizer AdamW, positions are learnt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from turborec.assembly import Assembly
from turborec.bench.step import Work
from turborec.data.store import Store
from turborec.data.windows import WindowRows
from turborec.stores import training_batches

KINDS = ("sasrec", "bert4rec", "gru4rec")

Logits = Literal["all", "targets"]
"""Where logits are made: at every padded position, or at the targets alone."""

Products = Literal["float32", "tf32", "bfloat16"]
"""What matrix products run in: as torch is set by default, in TF32 (CUDA), or under bfloat16 autocast."""


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """The rows of one epoch, one at a time: (events, the event after each) padded with 0, int64 [L] and [L]."""

    def __init__(self, store: Store, rows: WindowRows, length: int) -> None:
        self.items, self.rows, self.length = store.histories.items, rows, length

    def __len__(self) -> int:
        return len(self.rows.users)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        begin, end, first = (int(part[index]) for part in (self.rows.begin, self.rows.end, self.rows.first))
        events = np.zeros(self.length, np.int64)
        targets = np.zeros(self.length, np.int64)
        events[: end - begin] = self.items[begin:end]
        targets[first - 1 - begin : end - begin] = self.items[first : end + 1]
        return torch.from_numpy(events), torch.from_numpy(targets)


class Network(nn.Module):
    """SASRec, BERT4Rec or GRU4Rec from stock layers."""

    def __init__(self, config: Any, items: int, length: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(items + 1, config.width, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        if config.kind == "gru4rec":
            self.gru = nn.GRU(config.width, config.hidden, config.layers, batch_first=True)
            self.output = nn.Linear(config.hidden, config.width)
        else:
            self.mask = nn.Parameter(torch.zeros(config.width))
            self.positions = nn.Embedding(length, config.width)
            layer = nn.TransformerEncoderLayer(
                config.width, config.heads, config.hidden, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            layer.self_attn.dropout = 0.0
            self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
            self.causal = nn.Transformer.generate_square_subsequent_mask(length)
        self.norm = nn.LayerNorm(config.width)
        self.embedding_norm = nn.LayerNorm(config.width) if getattr(config, "embedding_norm", False) else nn.Identity()
        dense = (nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width))
        self.dense = nn.Sequential(*dense) if getattr(config, "head", False) else nn.Identity()
        self.table = self.items if getattr(config, "tied", True) else nn.Embedding(items + 1, config.width)
        self.bias = nn.Parameter(torch.zeros(items + 1)) if config.kind == "bert4rec" else None
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, events: Tensor, masked: Tensor) -> Tensor:
        """[B, L] -> [B, L, D]; `masked` [B, L] says which events are hidden."""
        x = self.items(events)
        if self.config.kind == "gru4rec":
            return self.norm(self.output(self.dropout(self.gru(self.dropout(x))[0])))  # type: ignore[no-any-return]
        x = torch.where(masked[..., None], self.mask, x) if self.config.kind == "bert4rec" else x
        x = self.dropout(self.embedding_norm(x + self.positions.weight))
        if self.config.kind == "sasrec":
            return self.norm(self.encoder(x, mask=self.causal, is_causal=True))  # type: ignore[no-any-return]
        return self.dense(self.norm(self.encoder(x, src_key_padding_mask=events == 0)))  # type: ignore[no-any-return]

    def scores(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V + 1]."""
        return F.linear(states, self.table.weight, self.bias)


def training(assembly: Assembly, rows: int, logits: Logits, products: Products = "float32") -> Iterator[Work]:
    """Optimizer steps of the plain implementation on batches of `rows` rows, epoch after epoch."""
    recipe, device, store = assembly.recipe, assembly.device, assembly.store
    config: Any = recipe.model
    bidirectional = config.kind == "bert4rec"
    length = recipe.batches.max_length + bidirectional
    torch.manual_seed(recipe.seed)
    model = Network(config, store.num_items, length).to(device)
    if hasattr(model, "causal"):
        model.causal = model.causal.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.train.optimizer.lr, weight_decay=recipe.train.optimizer.weight_decay
    )
    batches = training_batches(recipe, store)
    number = 0
    while True:
        data = Rows(store, batches.epoch(number).rows, length)
        cuda = device.type == "cuda"
        loader = DataLoader(data, rows, shuffle=True, drop_last=True, num_workers=4 * cuda, pin_memory=cuda)
        for events, following in loader:
            shown, predicted = int((events > 0).sum()), int((following > 0).sum())  # before the copy: nobody waits for a device
            events, following = events.to(device), following.to(device)
            targets, masked = following, torch.zeros_like(events, dtype=torch.bool)
            if bidirectional:
                events = _whole(events, following)
                masked = (torch.rand(events.shape, device=device) < config.mask_share) & (events > 0)
                targets = events * masked
            optimizer.zero_grad()
            with _in(products, device):
                with torch.autocast(device.type, torch.bfloat16, enabled=products == "bfloat16"):
                    states = model(events, masked)
                    if logits == "targets":
                        states, targets = states[targets > 0], targets[targets > 0]
                    loss = F.cross_entropy(model.scores(states).flatten(0, -2), targets.flatten(), ignore_index=0)
                loss.backward()  # type: ignore[no-untyped-call]
            if recipe.train.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip_norm)
            optimizer.step()
            loss.item()  # what a training bar shows
            yield Work(1, int(masked.sum()) if bidirectional else predicted, shown, events.numel())
        number += 1


@contextmanager
def _in(products: Products, device: torch.device) -> Iterator[None]:
    """TF32 for float32 products on CUDA while it lasts."""
    before = torch.backends.cuda.matmul.fp32_precision
    if products == "tf32" and device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _whole(events: Tensor, following: Tensor) -> Tensor:
    """A window with the event that follows it: [B, L] with a free last place -> [B, L]."""
    lengths = (events > 0).sum(1, keepdim=True)
    return events.scatter(1, lengths, following.gather(1, (lengths - 1).clamp(min=0)))
