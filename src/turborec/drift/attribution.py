"""Why a model has lost: how much of it is new items, how much new users, and how much known users asking for other known items.

Letters: N targets, one for each user and period that was sampled; R resamples of users.

With m the mean of a metric before and m' now, p and p' the shares of targets that are new items: the loss is that of new items,
(p' - p) (m_old - m_new) + p' (m_new - m_new'), and (1 - p') (m_old - m_old') of the others (Oaxaca 1973, Blinder 1973). Among
these m_old = m_known - q (m_known - m_users), with q the share of new users; a change of q (m_known - m_users) is the loss of
new users, who are so not charged with what befalls everybody. That of the known is parted again: what it would be if only the
kind of targets were another (long and short histories, popular and rare items), by weighting the reference's targets as often
as their kind is met now; and the rest, which is that the same kind of users asks for something else.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int64 = NDArray[np.int64]

CAUSES = ("new items", "new users", "mix", "preference")
"""In the order of the columns of `losses`; they add up to the whole loss."""


@dataclass(frozen=True)
class Targets:
    """What a model made of the sampled targets of some periods."""

    values: Float  # [N]: of the metric
    new_item: NDArray[np.bool_]  # [N]: of an item that training has not seen
    new_user: NDArray[np.bool_]  # [N]: of a user that training has not seen
    kind: Int64  # [N]: which targets are alike


def losses(reference: Targets, current: Targets, resamples: int = 2000, seed: int = 0) -> tuple[Float, Float]:
    """The loss by cause, [4], and in samples of targets drawn with replacement, [R, 4]."""
    generator = np.random.default_rng(seed)
    ones = (np.ones((1, len(part.values))) for part in (reference, current))
    found = _losses(reference, current, *ones)[0]
    weights = (
        generator.multinomial(len(part.values), np.full(len(part.values), 1 / len(part.values)), resamples).astype(np.float64)
        for part in (reference, current)
    )
    return found, _losses(reference, current, *weights)


def chance(reference: Targets, current: Targets, resamples: int = 2000, seed: int = 0) -> float:
    """How often the mean falls by as much where all targets are dealt to both sides by chance (Fisher's randomisation).

    The interval of a few targets that are all missed is too narrow, since no resample of them has a hit; this knows it.
    """
    generator = np.random.default_rng(seed)
    both, number = np.concatenate([reference.values, current.values]), len(reference.values)
    least = reference.values.sum() - 1e-9
    reached = sum(bool(generator.permutation(both)[:number].sum() >= least) for _ in range(resamples))
    return (1 + reached) / (1 + resamples)


def _losses(reference: Targets, current: Targets, before: Float, now: Float) -> Float:
    """The same with targets weighted: [R, N] twice -> [R, 4]."""
    parts = [_split(part, weights) for part, weights in ((reference, before), (current, now))]
    (p, m_new, q, m_user, m_known), (p_now, m_new_now, q_now, m_user_now, m_known_now) = parts
    expected = _as_met(reference, current, before, now)
    # Where one side has nobody who is known, nothing is known to have befallen them.
    lone, lone_now = q >= 1, q_now >= 1
    m_known, m_known_now = np.where(lone, m_known_now, m_known), np.where(lone_now, m_known, m_known_now)
    expected = np.where(lone | lone_now, m_known, expected)
    m_old = m_known - q * (m_known - m_user)
    items = (p_now - p) * (m_old - m_new) + p_now * (m_new - m_new_now)
    users = q_now * (m_known_now - m_user_now) - q * (m_known - m_user)
    old = [(1 - p_now) * loss for loss in (users, m_known - expected, expected - m_known_now)]
    return np.stack([items, *old], axis=1)


def _split(part: Targets, weights: Float) -> tuple[Float, Float, Float, Float, Float]:
    """The share of new items and their mean, that of new users among the others and theirs, the mean of the rest: [R] each."""
    item, user = part.new_item, part.new_user & ~part.new_item
    total, new, users = weights.sum(1), weights @ item, weights @ user
    others = total - new
    share = np.divide(users, others, out=np.ones_like(users), where=others > 0)
    means = [_mean(part.values, weights * group) for group in (item, user, ~item & ~user)]
    return new / total, means[0], share, means[1], means[2]


def _as_met(reference: Targets, current: Targets, before: Float, now: Float) -> Float:
    """The mean of the reference's known targets, weighted as often as their kind is met now: [R]."""
    known = [~part.new_item & ~part.new_user for part in (reference, current)]
    kinds = int(max(reference.kind.max(initial=0), current.kind.max(initial=0))) + 1
    member = [np.eye(kinds)[part.kind] * mask[:, None] for part, mask in zip((reference, current), known, strict=True)]
    had, met = before @ member[0], now @ member[1]
    # A kind that the reference does not have says nothing of what would have become of it: it is left out.
    ratio = np.divide(met, had, out=np.zeros_like(met), where=had > 0)
    return _mean(reference.values, before * (ratio @ member[0].T))


def _mean(values: Float, weights: Float) -> Float:
    """[N], [R, N] -> [R]; 0 where nothing has weight."""
    total = weights.sum(1)
    found: Float = np.divide(weights @ values, total, out=np.zeros(len(weights)), where=total > 0)
    return found
