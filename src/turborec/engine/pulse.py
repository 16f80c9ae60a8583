"""Signs of life of the processes of a run, by which those that wait in vain can say for whom.

A thread of each process tells the store of the rendezvous, twenty times in its patience, that it lives, how often it has met
the others and after which step; and it notes when theirs have changed, on its own clock. Steps themselves tell nobody.
"""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist


@dataclass
class _Sign:
    """What is known of a process, and since when."""

    beat: str = ""
    heard: float = 0.0  # when the beat last changed
    meetings: int = 0
    went_on: float = 0.0  # when the meetings last changed
    step: str = ""


class Pulse:
    """The signs of this process and those of the others."""

    def __init__(self, rank: int, size: int, patience: float) -> None:
        """Begin to give signs, in a process that has joined the others."""
        self.meetings = 0
        self.step = 0
        self._rank, self._patience = rank, patience
        now = time.monotonic()
        self._signs = [_Sign(heard=now, went_on=now) for _ in range(size)]
        self._answered = now
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="turborec-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give no more signs; what is known of the others stays."""
        self._left.set()
        self._thread.join(2)  # in vain where the store hangs

    def hanging(self) -> str | None:
        """Which processes are waited for and since when, in words; None where nothing tells."""
        now, long = time.monotonic(), self._patience / 2
        if (unknown := now - self._answered) > long:
            # Who cannot read the signs knows no more than that the process that keeps them does not answer.
            return None if _kept_by_launcher() else self._told(0, f"last heard from {unknown:,.0f} s ago")
        signs = list(enumerate(self._signs))
        mute = [(rank, f"last heard from {now - sign.heard:,.0f} s ago") for rank, sign in signs if now - sign.heard > long]
        late = [
            (rank, f"alive, but where it was {now - sign.went_on:,.0f} s ago")
            for rank, sign in signs
            if sign.meetings < self.meetings and now - sign.went_on > long
        ]
        return "; ".join(self._told(rank, how) for rank, how in mute or late) or None

    def _told(self, rank: int, how: str) -> str:
        step = self._signs[rank].step
        return f"process {rank} hangs ({how}, {f'after step {step}' if step else 'before its first step'})"

    def _beat(self) -> None:
        interval = self._patience / 20
        keys = [str(rank) for rank in range(len(self._signs))]
        store: Any = None
        beats = 0
        while not self._left.wait(interval if beats else 0):
            beats += 1
            try:
                store = store or _store(timedelta(seconds=interval))
                store.set(keys[self._rank], f"{beats} {self.meetings} {self.step or ''}")
                told = [text.decode() for text in store.multi_get(keys)]
            except RuntimeError:
                store = None  # an answer that comes late would be taken for that to another question
                continue
            self._answered = time.monotonic()
            for sign, text in zip(self._signs, told, strict=True):
                beat, meetings, sign.step = text.split(" ")
                if beat != sign.beat:
                    sign.beat, sign.heard = beat, self._answered
                if int(meetings) != sign.meetings:
                    sign.meetings, sign.went_on = int(meetings), self._answered


def _kept_by_launcher() -> bool:
    """Whether the store is in the launcher's process; else it is in the leader's."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(timeout: timedelta) -> Any:
    """A connection of one's own to the store that the processes have met at: a slow answer holds up nobody else."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=timeout, wait_for_workers=False)  # type: ignore[attr-defined]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"pulse {attempt}", store)  # type: ignore[attr-defined]
