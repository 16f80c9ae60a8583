"""Models of which each process holds a part: tables by rows, or every parameter (FSDP2); and the whole of them again.

Letters: N rows of this process, M of all processes, D width, V items. A part knows where it belongs, so checkpoints have the
same names and shapes whatever the number of processes. FSDP2 and its tensors are imported where they are made, and known by
what they can do: their import takes most of a second, which no other training should pay.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from turborec.contract import Loss, Model, Term, rows_of
from turborec.engine import world
from turborec.errors import UserError


class Part:
    """Consecutive rows of a table; the processes hold as many each, or one more (`contract.Parts`)."""

    def __init__(self, table: Tensor) -> None:
        """The rows of `table` that this process is to hold."""
        self.total = len(table)
        bounds = [self.total * number // world.size() for number in range(world.size() + 1)]
        self.bounds = torch.tensor(bounds, device=table.device)
        self.first, self.end = bounds[world.rank()], bounds[world.rank() + 1]
        self.most = max(end - max(1, first) for first, end in pairwise(bounds))
        self._counts: list[int] = []

    def of(self, table: Tensor) -> Tensor:
        """The rows of this process, of a whole table or of anything that has a row for each of its rows."""
        return table[self.first : self.end]

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Ask each process for the rows it holds, each row once; going backward it gets the sum of their gradients."""
        found: Tensor = _Rows.apply(table, ids.flatten(), self)  # type: ignore[no-untyped-call]
        return found.view(*ids.shape, table.shape[1])

    def together(self, *own: Tensor) -> tuple[Tensor, ...]:
        """[N, ...] each -> [M, ...] each, in order of rank."""
        self._counts = [int(n) for n in _gathered(torch.tensor([len(own[0])], device=own[0].device))]
        padded = (torch.cat([t, t.new_zeros(max(self._counts) - len(t), *t.shape[1:])]) for t in own)
        return tuple(torch.cat([p[:n] for p, n in zip(_gathered(t), self._counts, strict=True)]) for t in padded)

    def own(self, total: Tensor) -> Tensor:
        """[M, ...] -> [N, ...]."""
        return torch.split(total, self._counts)[world.rank()]

    def returned(self, parts: Tensor) -> Tensor:
        """[M, D] -> [N, D]."""
        room, number = max(self._counts), self._counts[world.rank()]
        padded = [torch.cat([p, p.new_zeros(room - len(p), p.shape[1])]) for p in torch.split(parts, self._counts)]
        summed = parts.new_empty(room, parts.shape[1])
        with record_function("communication"):
            dist.reduce_scatter(summed, padded)
        return summed[:number]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in its place."""
        with record_function("communication"):
            dist.all_reduce(tensor)
        return tensor

    def greatest(self, tensor: Tensor) -> Tensor:
        """The largest among the processes."""
        largest = tensor.clone()
        with record_function("communication"):
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest

    def held(self, ids: Tensor) -> Any:
        """Where the ids [N] are of rows that are here: int64 [K]."""
        return ((ids >= self.first) & (ids < self.end)).nonzero().squeeze(1)


class _Rows(torch.autograd.Function):
    """Rows of a table of which each process holds a part, by ids that differ from one process to another."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, part: Part) -> Tensor:
        """[T, D] the rows held, int64 [N] -> [N, D]."""
        wanted, ctx.place = torch.unique(ids, return_inverse=True)  # ascending, so those of one process lie together
        ends = torch.searchsorted(wanted, part.bounds.to(ids.device))
        ctx.asked = (ends[1:] - ends[:-1]).tolist()
        ctx.asked_of_us = _exchanged(ends[1:] - ends[:-1], [1] * world.size(), [1] * world.size()).tolist()
        requests = _exchanged(wanted, ctx.asked, ctx.asked_of_us) - part.first
        rows = _exchanged(table[requests], ctx.asked_of_us, ctx.asked)
        ctx.save_for_backward(requests)
        ctx.shape, ctx.sparse = table.shape, getattr(table, "_read_by_rows", False)
        return rows[ctx.place]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """[N, D] -> [T, D], of the rows that were read alone where the optimizer goes by rows."""
        (requests,) = ctx.saved_tensors
        of_rows = gradient.new_zeros(sum(ctx.asked), gradient.shape[1]).index_add_(0, ctx.place, gradient)
        of_ours = _exchanged(of_rows, ctx.asked, ctx.asked_of_us)
        if ctx.sparse:
            return torch.sparse_coo_tensor(requests[None], of_ours, ctx.shape, check_invariants=False), None, None
        return gradient.new_zeros(ctx.shape).index_add_(0, requests, of_ours), None, None


class _Embedding(nn.Embedding):
    """An embedding of whose table this process holds a part; its row of padding learns nothing."""

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., D]."""
        rows = rows_of(self.weight, ids.to(self.weight.device)).to(ids.device)
        return rows if self.padding_idx is None else torch.where((ids != self.padding_idx)[..., None], rows, rows.detach())


def split_tables(model: Model) -> None:
    """Leave each process some rows of every table of embeddings."""
    if getattr(model, "features", None) is not None:
        raise UserError("train.exchange.shard=tables: items are made of features by each process as a whole: leave it out.")
    for module in _tables(model):
        table = module.weight.detach()
        if len(table) < 2 * world.size():
            raise UserError(
                f"A table of {len(table):,} rows is too small to be shared by {world.size()} processes: leave out "
                "train.exchange.shard."
            )
        dist.broadcast(table, 0)
        part = Part(table)
        module.weight = nn.Parameter(part.of(table).clone())
        module.weight._parts = part  # type: ignore[attr-defined]
        module.__class__ = _Embedding


def split_parameters(model: Model, reduced: torch.dtype | None) -> None:
    """Leave each process a part of every parameter (FSDP2): layers of a stack are brought together when their turn comes.

    `reduced`: what gradients are sent in, where that is not their own type.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), 0)
    _open_losses()
    policy = MixedPrecisionPolicy(reduce_dtype=reduced)
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in stack:
            fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


@cache
def _open_losses() -> None:
    """Let torch see the tensors in what a model puts out, to which FSDP2 attaches its hooks."""
    for kind in (Term, Loss):
        torch.export.register_dataclass(kind)


def is_part(parameter: Tensor) -> bool:
    """Whether other processes hold the rest of it."""
    return hasattr(parameter, "to_local") or hasattr(parameter, "_parts")


def is_fully_sharded(model: Model) -> bool:
    """Whether every parameter is held in parts, by FSDP2."""
    return hasattr(model, "set_requires_gradient_sync")


def numbers_of(parameter: Any) -> int:
    """How many numbers a parameter has, those that other processes hold among them."""
    parts: Part | None = getattr(parameter, "_parts", None)
    return parameter.numel() if parts is None else parts.total * parameter[0].numel()  # type: ignore[no-any-return]


def held(tensor: Tensor) -> Tensor:
    """The plain tensor that this process holds of it."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def whole(tensor: Tensor, parameter: Tensor) -> Tensor:
    """All of a tensor that is laid out like `parameter`, such as itself or what an optimizer remembers of it.

    Every process must ask. What is held in parts comes to the host, where there is room for it: a device may have none.
    """
    if hasattr(tensor, "full_tensor"):
        full: Tensor = tensor.full_tensor()
        return full.cpu()
    part: Part | None = getattr(parameter, "_parts", None)
    if part is None or not tensor.ndim:
        return tensor
    return part.together(tensor)[0].cpu()


def part_of(tensor: Tensor, parameter: Any) -> Tensor:
    """What this process holds of a whole tensor that is laid out like `parameter`."""
    if not tensor.ndim:
        return tensor
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        # Every process has all of it, so nothing needs to be sent.
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    part: Part | None = getattr(parameter, "_parts", None)
    return tensor if part is None else part.of(tensor).clone()


def whole_state(model: Model) -> dict[str, Tensor]:
    """The model's state with every tensor whole, but for what is another run's; every process must ask."""
    parameters, others = dict(model.named_parameters()), borrowed(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in others}
    return {name: whole(tensor, parameters.get(name, tensor)) for name, tensor in state.items()}


def borrowed(model: Model) -> set[str]:
    """The names of the frozen parameters that are another run's, to which this one adds adapters."""
    return {name for name, parameter in model.named_parameters() if getattr(parameter, "_of_base", False)}


def load_whole(model: Model, state: Mapping[str, Tensor]) -> None:
    """Take from a whole state what this process holds of it. A UserError where it is of adapters to another base."""
    parameters, others = dict(model.named_parameters()), borrowed(model)
    if others and "base" in state and not torch.equal(state["base"], model.state_dict()["base"].cpu()):
        raise UserError(
            "These adapters were trained beside other weights than those of `base`, or of the run that their gate looks at, as "
            "they are now: they mean nothing to these. Name the runs that they were trained on, as they were."
        )
    own = {name: tensor for name, tensor in model.state_dict().items() if name in others}
    found = {n: part_of(t, parameters[n]) if n in parameters else t for n, t in state.items()}
    model.load_state_dict({**own, **found}, strict=True)


def whole_model(model: Model, build: Callable[[], Model]) -> Model:
    """The model with all of its parameters here: itself where nothing is missing, else a copy; every process must ask.

    `build` makes a model of the same shape. Of tables that are held in parts the whole lies on the host, since a device may
    have no room for it.
    """
    if not any(is_part(parameter) for parameter in model.parameters()):
        return model
    copy, device = build(), next(model.parameters()).device
    copy.load_state_dict(whole_state(model), strict=True)
    tables = [] if is_fully_sharded(model) else _tables(copy)
    for table in tables:
        table.__class__ = _Embedding
    for tensor in [*copy.parameters(), *copy.buffers()]:
        if not any(tensor is table.weight for table in tables):
            tensor.data = tensor.data.to(device)
    return copy


def _tables(model: Model) -> list[nn.Embedding]:
    """Those of which a step reads some rows; tables that are read whole, such as positions', are small."""
    found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return [table for table in found if not getattr(table, "_read_whole", False)]


def _gathered(own: Tensor) -> list[Tensor]:
    """What each process has of a tensor of one shape."""
    found = [torch.empty_like(own) for _ in range(world.size())]
    with record_function("communication"):
        dist.all_gather(found, own.contiguous())
    return found


def _exchanged(rows: Tensor, sent: list[int], got: list[int]) -> Tensor:
    """Hand sent[0] rows to process 0, the next sent[1] to process 1 and so on: what this one is handed, in order of rank."""
    found = rows.new_empty(sum(got), *rows.shape[1:])
    with record_function("communication"):
        dist.all_to_all_single(found, rows.contiguous(), got, sent)
    return found
