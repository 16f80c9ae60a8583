"""Ctrl-C and the signals of schedulers as a request that the loop answers at the next safe moment."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from turborec.errors import InterruptedRunError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, the end of a job, and the warning that Slurm can be told to send before it."""

TRY_AGAIN = 75
"""The exit code of a run that was stopped by its machine and goes on when started again (EX_TEMPFAIL of sysexits.h)."""


class Interruption:
    """Whether somebody has asked the process to stop, and how."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


def code_of(number: int) -> int:
    """The exit code of a run that this signal has stopped."""
    return 130 if number == signal.SIGINT else TRY_AGAIN


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the signals into a flag while the block runs; a second one acts at once, as if nobody caught it."""
    request = Interruption()
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        print("\nStopping at the end of this step; what is there will be saved. Once more stops at once.", file=sys.stderr)
        signal.signal(number, previous[signal.Signals(number)])

    with _handled(remember):
        yield request


def heed(number: int, step: int, command: str) -> None:
    """Raise `InterruptedRunError` if a signal asked to end (0: none did); what there is has just been saved after `step`."""
    if number:
        raise InterruptedRunError(
            f"Stopped by {signal.Signals(number).name} after step {step:,}; everything is saved. Go on with: {command}",
            code_of(number),
        )


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Leave the block with `InterruptedRunError` when a scheduler's signal comes: there is nothing to save in it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise InterruptedRunError(f"Stopped by {signal.Signals(number).name}.", code_of(number))

    with _handled(leave, SIGNALS[1:]):
        yield


@contextmanager
def _handled(handler: "signal._HANDLER", numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
