"""Batches in their order, on the device that trains; beside an accelerator each is made while the step before it runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch

from turborec.contract import Batch


class Batches(Protocol):
    """An epoch of batches, each a pure function of its number."""

    @property
    def key(self) -> int:
        """The epoch's: what is random about it as a whole follows from it."""
        ...

    @property
    def number(self) -> int:
        """The epoch's, from 0 over all stages."""
        ...

    def __len__(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """The batch of step 0..len - 1."""
        ...


Ready = Callable[[Any], Any]
"""What is done to a batch where it is made."""


def ordered(batches: Batches, first: int, device: torch.device, ready: Ready) -> Iterator[Any]:
    """The batches from step `first` on, made `ready`; on the processor itself nothing would be gained by a second thread."""
    if device.type == "cpu":
        return (ready(batches.batch(step)) for step in range(first, len(batches)))
    return in_thread(batches, first, ready)


def in_thread(batches: Batches, first: int, ready: Ready) -> Iterator[Any]:
    """The same batches, one step ahead, from a thread that ends with the iterator; its errors come out here."""
    with ThreadPoolExecutor(1, "turborec-batches") as pool:

        def made(step: int) -> Any:
            return ready(batches.batch(step))

        coming = pool.submit(made, first) if first < len(batches) else None
        for step in range(first, len(batches)):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(made, step + 1) if step + 1 < len(batches) else None
            yield batch
