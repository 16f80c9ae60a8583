"""Gradients of one model in several processes, each with its share of every batch: what is exchanged, and how.

The loss of a share is divided by the count of the whole batch, so the gradients of the shares add up to that of the batch.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from turborec.contract import Loss, Model, Term
from turborec.engine import world
from turborec.engine.sharding import is_fully_sharded, is_part, split_parameters, split_tables
from turborec.errors import UserError
from turborec.recipe import Config


class Exchange(Config):
    """How the processes of a run exchange their gradients; one process has nothing to exchange."""

    bucket_mb: float = Field(25.0, gt=0.0, description="gradients that are sent together, while others are still computed")
    compress: Literal["none", "bfloat16"] = Field("none", description="what gradients are sent in, where not their own type")
    static_graph: bool = Field(False, description="promise torch that every step uses the same parameters")
    shard: Literal["none", "tables", "parameters"] = Field(
        "none", description="what each process holds a part of: the rows of tables, or every parameter (FSDP2)"
    )

    def apply(self, model: Model) -> None:
        """Leave each of several processes its part of the model, in place."""
        if world.size() == 1 or self.shard == "none":
            return
        if self.shard == "tables":
            split_tables(model)
        else:
            split_parameters(model, torch.bfloat16 if self.compress == "bfloat16" else None)


class Shares:
    """The forward pass of a model whose gradients will be those of all shares together."""

    def __init__(self, model: Model, exchange: Exchange) -> None:
        """Wrap the model where there are several processes; every one of them begins with the leader's weights."""
        self.model = model
        self.tables = [p for p in model.parameters() if getattr(p, "_read_by_rows", False) and not is_part(p)]
        self.parts = [p for p in model.parameters() if is_part(p)]
        alone = world.size() == 1 or is_fully_sharded(model)
        self._wrapped = None if alone else _wrap(model, [*self.tables, *self.parts], exchange)
        world.held_by(self)

    def release(self) -> None:
        """Let go of the group of processes: no more steps."""
        self._wrapped = None

    def backward(self, total: Tensor) -> None:
        """Add the gradient of a share's loss to that of all; torch takes the mean over the processes, but the sum is wanted."""
        (total * world.size()).backward()  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Loss:
        """The loss of this process's share."""
        if self._wrapped is None:
            loss: Loss = self.model(batch)
            return loss
        counts = {"": batch.num_targets(), **self.model.counts(batch)}
        sums = self._wrapped(batch)
        return Loss({name: Term(total, counts.get(name, counts[""]), weight) for name, (total, weight) in sums.items()})

    @property
    def nbytes(self) -> int:
        """Of the gradients that every step exchanges whole."""
        apart = {id(p) for p in (self.tables if is_fully_sharded(self.model) else [*self.tables, *self.parts])}
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad and id(p) not in apart)

    def exchange_seconds(self, times: int = 3) -> float:
        """How long the processes need to add up so many bytes, with nothing else to do: the best of some trials."""
        device = next(self.model.parameters()).device
        gradient = torch.zeros(max(1, self.nbytes // 4), device=device)
        found = []
        for _ in range(times):
            world.wait()
            began = time.perf_counter()
            dist.all_reduce(gradient)
            gradient[0].item()  # beside an accelerator the call itself returns at once
            found.append(time.perf_counter() - began)
        return world.greatest([min(found)])[0]

    @contextmanager
    def silent(self, last: bool) -> Iterator[None]:
        """Gradients of a part are kept until those of the `last` part are exchanged with them."""
        if is_fully_sharded(self.model):
            model: Any = self.model
            model.set_requires_gradient_sync(last)
            yield
        elif self._wrapped is None or last:
            yield
        else:
            with self._wrapped.no_sync():
                yield

    def exchange_tables(self) -> None:
        """Add up the gradients of tables of which a step reads few rows: only these rows are sent."""
        if self._wrapped is None:
            return
        for part in self.parts:
            if part.grad is not None:
                part.grad /= world.size()  # all that it will get: whoever has used its rows has sent theirs
        with record_function("communication"):
            for table in self.tables:
                if table.grad is None:
                    table.grad = torch.zeros_like(table)  # nobody may be missing where all add up
                if table.grad.is_sparse:
                    table.grad = _added_rows(table.grad)
                else:
                    dist.all_reduce(table.grad)
                table.grad /= world.size()


class _Sums(nn.Module):
    """A model whose output is tensors in plain containers, as torch's wrapper wants them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> dict[str, tuple[Tensor, float]]:
        """The sum and the weight of each term."""
        return {name: (term.sum, term.weight) for name, term in self.model(batch).terms.items()}


def _wrap(model: Model, tables: list[nn.Parameter], exchange: Exchange) -> DistributedDataParallel:
    """Torch's wrapper, which leaves these tables to us."""
    inner = _Sums(model)
    apart = [name for name, p in inner.named_parameters() if any(p is table for table in tables)]
    for table in tables:
        if not is_part(table):
            dist.broadcast(table.detach(), 0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(inner, apart)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # what is to come instead is not there in torch 2.11
        wrapped = DistributedDataParallel(
            inner,
            bucket_cap_mb=exchange.bucket_mb,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=exchange.static_graph,
        )
    if exchange.compress == "bfloat16" and next(model.parameters()).device.type != "cuda":
        raise UserError(
            "train.exchange.compress=bfloat16 needs accelerators and nccl: torch exchanges no bfloat16 between processors. "
            "Leave it out."
        )
    if exchange.compress == "bfloat16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def _added_rows(gradient: Tensor) -> Tensor:
    """The sum over the processes of a gradient of rows: ids and rows are sent, never the whole table."""
    gradient = gradient.coalesce()
    ids, rows = gradient.indices()[0], gradient.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=ids.device) for _ in range(world.size())]
    dist.all_gather(counts, torch.tensor([len(ids)], device=ids.device))
    room = max(int(count) for count in counts)
    all_ids = [ids.new_zeros(room) for _ in counts]
    all_rows = [rows.new_zeros(room, rows.shape[1]) for _ in counts]
    dist.all_gather(all_ids, torch.cat([ids, ids.new_zeros(room - len(ids))]))
    dist.all_gather(all_rows, torch.cat([rows, rows.new_zeros(room - len(rows), rows.shape[1])]))
    found = [(i[: int(n)], r[: int(n)]) for i, r, n in zip(all_ids, all_rows, counts, strict=True)]
    together = torch.cat([i for i, _ in found])[None], torch.cat([r for _, r in found])
    return torch.sparse_coo_tensor(*together, size=gradient.shape, check_invariants=False).coalesce()
