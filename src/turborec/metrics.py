"""Ranking metrics: the ranks of each user's targets -> one value per user; how often items are listed -> one value.

Letters: U users, P (user, target) pairs, T targets of a user, V items, n candidates of a user, r a rank (1 is best).
Ranks may be fractional, because ties share their places: a hit at k is r <= k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from turborec.recipe import Config

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

LONGEST_LIST = 10**6
"""The greatest k; a catalogue with fewer items is listed whole."""

TIES = (
    "a target takes the mean of the places it shares (rank = 1 + items scoring higher + half of the other items scoring "
    "equal); m targets of one user among g equal scores take the expected places j (g + 1) / (m + 1), j = 1..m"
)


@dataclass(frozen=True)
class Ranks:
    """The ranks of every user's targets; a user has at least one."""

    offsets: Int64  # [U + 1]: user u's ranks are values[offsets[u]:offsets[u + 1]], ascending
    values: Float64  # [P]
    candidates: Int64  # [U]: n, how many items were ranked, the targets among them

    @classmethod
    def of(cls, ranks: Sequence[Sequence[float]], candidates: int) -> Self:
        """Ranks from lists, every user with the same number of candidates."""
        offsets = np.cumsum([0, *(len(user) for user in ranks)], dtype=np.int64)
        values = np.asarray([rank for user in ranks for rank in sorted(user)], dtype=np.float64)
        return cls(offsets, values, np.full(len(ranks), candidates, dtype=np.int64))

    @classmethod
    def of_counts(cls, offsets: Int64, greater: Int64, equal: Int64, candidates: Int64) -> Self:
        """Ranks from how many other candidates score above each target, and how many score the same: two [P] arrays.

        `greater` ascends within a user. The rank of a lone target is its mid-rank 1 + greater + equal / 2. Targets that
        tie with each other take distinct places, or three of them could be hits at k = 2; `TIES` says which.
        """
        user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        starts = np.ones(len(greater), dtype=bool)
        starts[1:] = (user[1:] != user[:-1]) | (greater[1:] != greater[:-1])
        group = np.cumsum(starts) - 1
        size = np.bincount(group)[group] if len(group) else group
        place = np.arange(len(greater)) - np.flatnonzero(starts)[group] + 1
        return cls(offsets, greater + place * (equal + 2) / (size + 1), candidates)

    @property
    def targets(self) -> Int64:
        """T of each user: [U]."""
        counts: Int64 = np.diff(self.offsets)
        return counts

    @property
    def places(self) -> Int64:
        """Each target's place among its user's own, from 1: [P]."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.targets) + 1

    def sum(self, values: NDArray[np.generic]) -> Float64:
        """The sum of each user's values: [P] -> [U]."""
        total: Float64 = np.add.reduceat(values.astype(np.float64), self.offsets[:-1])
        return total


@dataclass(frozen=True)
class Exposure:
    """How often items are listed in the users' top k, and how popular they were; entry 0 of both is unused."""

    listed: Int64  # [V + 1]
    events: Int64  # [V + 1]: training events


class HR(Config):
    """Hit rate: 1 if any target ranks within k, else 0.

    >>> HR(k=3).per_user(Ranks.of([[2, 9], [3.5]], candidates=9)).tolist()
    [1.0, 0.0]
    """

    kind: Literal["hr"] = "hr"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"hr@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        return (ranks.values[ranks.offsets[:-1]] <= self.k).astype(np.float64)


class Recall(Config):
    """The share of a user's targets that rank within k: hits / T.

    >>> Recall(k=3).per_user(Ranks.of([[2, 9], [3]], candidates=9)).tolist()
    [0.5, 1.0]
    """

    kind: Literal["recall"] = "recall"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"recall@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        return ranks.sum(ranks.values <= self.k) / ranks.targets


class Precision(Config):
    """The share of the first k places that hold a target: hits / k, whatever T and n are.

    >>> Precision(k=4).per_user(Ranks.of([[2, 3], [9]], candidates=9)).tolist()
    [0.5, 0.0]
    """

    kind: Literal["precision"] = "precision"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"precision@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        return ranks.sum(ranks.values <= self.k) / self.k


class NDCG(Config):
    """Normalised discounted cumulative gain: sum of 1 / log2(1 + r) over hits / its value for ranks 1..min(T, k).

    Jaervelin and Kekaelaeinen (2002), binary gains.

    >>> NDCG(k=10).per_user(Ranks.of([[1, 3], [3]], candidates=20)).round(4).tolist()  # (1 + .5) / (1 + .6309), .5
    [0.9197, 0.5]
    """

    kind: Literal["ndcg"] = "ndcg"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"ndcg@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        gains = np.where(ranks.values <= self.k, 1 / np.log2(1 + ranks.values), 0)
        most = np.minimum(ranks.targets, self.k)
        ideal: Float64 = np.cumsum(1 / np.log2(2 + np.arange(most.max(initial=1))))
        return ranks.sum(gains) / ideal.take(most - 1)


class MAP(Config):
    """Mean average precision: sum over hits of (targets at or above the hit) / r, divided by min(T, k).

    Dividing by min(T, k) lets a perfect list score 1; trec_eval's `map_cut` divides by T.

    >>> MAP(k=10).per_user(Ranks.of([[1, 4], [2]], candidates=20)).tolist()  # (1/1 + 2/4) / 2, 1/2
    [0.75, 0.5]
    """

    kind: Literal["map"] = "map"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"map@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        precision = np.where(ranks.values <= self.k, ranks.places / ranks.values, 0)
        return ranks.sum(precision) / np.minimum(ranks.targets, self.k)


class MRR(Config):
    """Mean reciprocal rank: 1 / r of the best target, and 0 if there is a k and the target ranks beyond it.

    >>> MRR().per_user(Ranks.of([[2, 9], [4]], candidates=9)).tolist()
    [0.5, 0.25]
    >>> MRR(k=3).per_user(Ranks.of([[2, 9], [4]], candidates=9)).tolist()
    [0.5, 0.0]
    """

    kind: Literal["mrr"] = "mrr"
    k: int | None = Field(None, ge=1, le=LONGEST_LIST, description="places that count; all of them when null")

    @property
    def name(self) -> str:
        """As in results."""
        return "mrr" if self.k is None else f"mrr@{self.k}"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        best = ranks.values[ranks.offsets[:-1]]
        return np.where(best <= (self.k or np.inf), 1 / best, 0)


class CatalogueAUC(Config):
    """The share of (target, other candidate) pairs in which the target scores higher, ties counting half.

    AUC = 1 - (sum of (r - 1) - T (T - 1) / 2) / (T (n - T)), which is Mann and Whitney's U / (T (n - T)); 0.5 where every
    candidate is a target.

    >>> CatalogueAUC().per_user(Ranks.of([[1], [3], [1, 4]], candidates=5)).round(4).tolist()  # 4/4, 2/4, (3 + 1)/6
    [1.0, 0.5, 0.6667]
    """

    kind: Literal["catalogue_auc"] = "catalogue_auc"

    @property
    def name(self) -> str:
        """As in results."""
        return "catalogue_auc"

    def per_user(self, ranks: Ranks) -> Float64:
        """-> [U]."""
        targets = ranks.targets
        pairs = targets * (ranks.candidates - targets)
        lost = ranks.sum(ranks.values - 1) - targets * (targets - 1) / 2
        return np.where(pairs > 0, 1 - lost / np.maximum(pairs, 1), 0.5)


class Coverage(Config):
    """The share of the catalogue that stands in at least one user's top k.

    >>> Coverage(k=2).value(Exposure(listed=np.array([0, 3, 0, 1, 0]), events=np.array([0, 5, 4, 3, 2])))
    0.5
    """

    kind: Literal["coverage"] = "coverage"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"coverage@{self.k}"

    def value(self, exposure: Exposure) -> float:
        """-> one number for all users."""
        return float(np.mean(exposure.listed[1:] > 0))


class ARP(Config):
    """Average recommendation popularity: mean number of training events of the items in the users' top k.

    Popularity bias after Yin et al. (VLDB 2012) and Abdollahpouri et al. (FLAIRS 2019); the mean is over listed places.

    >>> ARP(k=2).value(Exposure(listed=np.array([0, 3, 0, 1, 0]), events=np.array([0, 5, 4, 3, 2])))  # (3 * 5 + 3) / 4
    4.5
    """

    kind: Literal["arp"] = "arp"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"arp@{self.k}"

    def value(self, exposure: Exposure) -> float:
        """-> one number for all users."""
        listed = int(exposure.listed.sum())
        return float(exposure.listed @ exposure.events) / listed if listed else 0.0


class ImpressionAUC(Config):
    """Of the pairs of a clicked item and one that was shown beside it, the share in which the clicked one scores higher.

    The mean over impressions, as MIND's official scorer has it; ties count half. Impressions with nothing but clicks have none.
    """

    kind: Literal["impression_auc"] = "impression_auc"
    name: ClassVar[str] = "impression_auc"


class ImpressionMRR(Config):
    """The mean of 1 / r over an impression's clicks, its items ranked among themselves, and then over impressions.

    So defined by MIND's official scorer, which is not the first hit's.
    """

    kind: Literal["impression_mrr"] = "impression_mrr"
    name: ClassVar[str] = "impression_mrr"


class ImpressionNDCG(Config):
    """NDCG within k of an impression's items ranked among themselves; the mean over impressions, as MIND's scorer has it."""

    kind: Literal["impression_ndcg"] = "impression_ndcg"
    k: int = Field(10, ge=1, le=LONGEST_LIST)

    @property
    def name(self) -> str:
        """As in results."""
        return f"impression_ndcg@{self.k}"


RankMetric = HR | Recall | Precision | NDCG | MAP | MRR | CatalogueAUC
ListMetric = Coverage | ARP
ImpressionMetric = ImpressionAUC | ImpressionMRR | ImpressionNDCG
Metric = Annotated[RankMetric | ListMetric | ImpressionMetric, Field(discriminator="kind")]


def definition(metric: RankMetric | ListMetric | ImpressionMetric) -> str:
    """What the metric is, in the words of its own documentation."""
    return (type(metric).__doc__ or "").partition("\n")[0]
