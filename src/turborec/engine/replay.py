"""Whole optimizer steps, recorded by CUDA once for each shape of batch and replayed.

A step of a small model is a thousand operations of a few microseconds each, and a processor needs longer to ask for one than
an accelerator to do it. A recording asks for all of them at once. It holds for the shapes, the addresses and the numbers it was
made with: what changes from step to step comes in through tensors that stay where they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from turborec.contract import Model
from turborec.engine.optim import gradient_norm

Key = tuple[tuple[str, torch.dtype, torch.Size], ...]
"""What a batch's tensors are, by their names."""


class Packed:
    """A batch whose tensors of one type lie one after the other in one, so that all of them move in one copy."""

    def __init__(self, batch: Any, pinned: bool) -> None:
        self.batch, tensors = batch, batch.tensors()
        self.key: Key = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        types = sorted({tensor.dtype for tensor in tensors.values()}, key=str)
        flat = [torch.cat([t.flatten() for t in tensors.values() if t.dtype == one]) for one in types]
        self.flat = [one.pin_memory() for one in flat] if pinned else flat

    def on(self, device: torch.device) -> tuple[list[Tensor], Any]:
        """The flat tensors on a device, and the batch made of views of them."""
        flat = [one.to(device, non_blocking=True, copy=True) for one in self.flat]
        left, made = {one.dtype: one for one in flat}, {}
        for name, dtype, shape in self.key:
            made[name], left[dtype] = left[dtype][: shape.numel()].view(shape), left[dtype][shape.numel() :]
        return flat, replace(self.batch, **made)


class Replays:
    """The steps of one stage, on one stream of their own: the first of each shape is computed, the second recorded."""

    met: ClassVar[int] = 0
    """Shapes met and steps recorded so far in this process: while it grows, steps take longer than they will."""

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        limit: float | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`limit` of the gradient's norm, None for none; `dtype` of the products. Only CUDA records anything."""
        self._model, self._optimizer, self._limit, self._dtype, self._device = model, optimizer, limit, dtype, device
        self._cuda = device.type == "cuda"
        self._slots: dict[Key, tuple[list[Tensor], Any]] = {}  # batches whose tensors stay where they are
        self._graphs: dict[Key, Any] = {}
        self._stream: Any = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._pool: Any = None  # of memory, one for all recordings: no two of them run at a time
        self._rate = torch.zeros((), device=device)
        self._share = torch.zeros((), device=device)  # of each prediction in the mean
        self._seen = torch.zeros(2, device=device)  # the loss, and the norm of its gradient
        self.term = "loss"  # the name of the model's one term

    def __len__(self) -> int:
        """How many recordings there are."""
        return len(self._graphs)

    def ready(self, batch: Any) -> Packed:
        """A batch as `step` takes it: all worked out, in memory that an accelerator reads by itself."""
        return Packed(self._model.asked(batch, again=True), pinned=self._cuda)

    def step(self, packed: Packed, rate: float) -> tuple[float, float]:
        """One optimizer step at this learning rate: its loss, and the norm of the gradient before clipping.

        A loss or a gradient that is not finite changes no weight.
        """
        key = packed.key
        if self._cuda:  # for what others did to the weights, such as their average
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream) if self._cuda else nullcontext():
            self._rate.fill_(rate)
            self._share.fill_(1 / max(1, packed.batch.count))
            if key not in self._slots:
                Replays.met += 1
                self._slots[key] = packed.on(self._device)
                self._compute(self._slots[key][1])
            else:
                flat, slot = self._slots[key]
                for there, one in zip(flat, packed.flat, strict=True):
                    there.copy_(one, non_blocking=True)
                if self._cuda and key not in self._graphs:
                    Replays.met += 1
                    self._graphs[key] = self._record(slot)
                if self._cuda:
                    self._graphs[key].replay()
                else:
                    self._compute(slot)
            loss, norm = self._seen.tolist()  # the one time that a step waits
        return loss, norm

    def _record(self, slot: Any) -> Any:
        graph: Any = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Another thread makes batches meanwhile, which is no concern of the recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._compute(slot)
        return graph

    def _compute(self, slot: Any) -> None:
        """The step, without a question to the device."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            ((self.term, term),) = self._model(slot).terms.items()
        total = term.sum.float() * self._share * term.weight
        total.backward()
        norm = gradient_norm(parameters).float()
        optimizer: Any = self._optimizer
        # torch's names for what a scaler of losses would leave here: gradients are divided by the one, and nothing is done
        # where the other is not 0.
        optimizer.found_inf = (~(norm + total.detach()).isfinite()).float()
        if self._limit is not None:
            optimizer.grad_scale = ((norm + 1e-6) / self._limit).clamp(min=1.0)
        with self._by_tensor():
            optimizer.step()
        optimizer.found_inf = optimizer.grad_scale = None
        optimizer.zero_grad(set_to_none=True)
        self._seen.copy_(torch.stack([total.detach(), norm]))

    @contextmanager
    def _by_tensor(self) -> Iterator[None]:
        """Let the optimizer read its rate from the tensor while a step is computed; its groups keep plain numbers."""
        groups = self._optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group in groups:
            group["lr"], group["capturable"] = self._rate, self._cuda
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, capturable
