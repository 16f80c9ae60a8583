"""How well a model of RecBole ranks, by turborec's evaluator, or with RecBole's habits switched on.

Letters: P (row, target) pairs, B rows of a batch, V items.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from turborec.contract import Scorer
from turborec.engine import world
from turborec.errors import UserError
from turborec.evaluate import HISTORIES, Evaluation, History, Result, summarise
from turborec.metrics import HR, MAP, MRR, NDCG, Metric, Precision, RankMetric, Recall
from turborec.ranking import Ranker, Tally, Targets
from turborec.recbole import shims
from turborec.recbole.data import Ranked
from turborec.recbole.job import Ranking

METRICS: dict[str, Callable[[int], RankMetric]] = {
    "hit": lambda k: HR(k=k),
    "recall": lambda k: Recall(k=k),
    "ndcg": lambda k: NDCG(k=k),
    "precision": lambda k: Precision(k=k),
    "map": lambda k: MAP(k=k),
    "mrr": lambda k: MRR(k=k),
}
"""RecBole's names of the metrics that turborec has too."""

TOPK = "equal scores stand in the order in which torch.topk lists them, as in RecBole's collector"


def metrics_of(config: Any) -> dict[str, Metric]:
    """The metrics that RecBole's settings ask for, by its names for them; others are left out."""
    kinds = [str(name).lower() for name in config["metrics"] if str(name).lower() in METRICS]
    found: dict[str, Metric] = {f"{kind}@{k}": METRICS[kind](int(k)) for kind in dict.fromkeys(kinds) for k in config["topk"]}
    if (chosen := str(config["valid_metric"]).lower()) not in found:
        raise UserError(
            f"valid_metric is {config['valid_metric']}, which is not among the metrics of these settings that turborec "
            f"computes: {', '.join(found) or 'none'}. Choose one of {', '.join(METRICS)} with a k of topk, such as NDCG@10."
        )
    return {chosen: found[chosen], **found}


def history_of(config: Any, ranking: Ranking) -> History:
    """Which treatment of the history counts."""
    if ranking.history != "recbole":
        return ranking.history
    return "kept" if shims.is_sequential(config) else "masked"


def measure(scorer: Scorer, part: Ranked, config: Any, ranking: Ranking, name: str) -> Result:
    """Rank a part's rows, each process a share of them, all with the same result."""
    history, metrics = history_of(config, ranking), metrics_of(config)
    evaluation = Evaluation(metrics=tuple(metrics.values()), history=history)
    targets = Targets.of(part.store, "test", part.rows)
    device: torch.device = config["device"]
    with torch.no_grad():
        if ranking.ties == "mid":
            ranker = Ranker(part.store, "test", targets, (), 2**30, device)
            for batch in part.batches(world.rank(), world.size()):
                ranker.rank(scorer, batch)
            tally = ranker.tally
        else:
            tally = _listed(scorer, part, targets, history, max(config["topk"]), device)
    world.add_up(tally.arrays())
    result = summarise(tally, targets, part.store, "test", evaluation, int(config["MAX_ITEM_LIST_LENGTH"] or 0))
    digits = ranking.digits
    card = {
        **{key: value for key, value in result.card.items() if key not in ("data", "filters", "sample")},
        "part": name,
        "data": {"dataset": config["dataset"], **part.store.card["counts"]},
        "split": config["eval_args"],
        "times": ranking.times,
        "digits": digits,
        **({"ties": TOPK} if ranking.ties == "topk" else {}),
    }

    def named(values: dict[str, float]) -> dict[str, float]:
        own = {theirs: values[metric.name] for theirs, metric in metrics.items()}
        return own if digits is None else {name: round(value, digits) for name, value in own.items()}

    found = {kind: named(getattr(result, kind)) for kind in HISTORIES}
    if ranking.ties == "topk":
        found = dict.fromkeys(HISTORIES, found[history])  # the other one was not ranked
    return replace(result, card=card, masked=found["masked"], kept=found["kept"])


def _listed(scorer: Scorer, part: Ranked, targets: Targets, history: History, k: int, device: torch.device) -> Tally:
    """Counts from the lists of torch.topk over all items and the padding, as RecBole takes them; beyond a list is last."""
    tally, items = Tally.empty(targets, 0, part.store.num_items), part.store.num_items
    for batch in part.batches(world.rank(), world.size()):
        state = scorer.users(batch.to(device))
        scores = torch.cat([state.new_full((len(batch.users), 1), -math.inf), scorer.score(state, 1, items + 1)], 1)
        for row, user in enumerate(batch.users.tolist()):
            lo, hi = targets.offsets[user : user + 2]
            wanted = targets.items[lo:hi]
            seen = np.setdiff1d(_history(part, user), wanted)
            if history == "masked":
                scores[row, torch.from_numpy(seen).to(device)] = -math.inf
            tally.seen[user] = len(seen) if history == "masked" else 0
            tally.broken[user] = int(scores[row, 1:].isnan().any())
        best = torch.topk(scores, k, dim=-1).indices.cpu().numpy()
        for row, user in enumerate(batch.users.tolist()):
            lo, hi = targets.offsets[user : user + 2]
            place = {int(item): number for number, item in enumerate(best[row])}
            tally.greater[lo:hi] = [place.get(int(item), items - 1) for item in targets.items[lo:hi]]
            tally.ranked[user] += 1
    return tally


def _history(part: Ranked, user: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    lo, hi = part.store.histories.offsets[user], part.store.cuts[user, 0]
    return np.unique(part.store.histories.items[lo:hi].astype(np.int64))
