"""What a trained run is for: lists for anybody, and one of them in words."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from turborec.assembly import Run
from turborec.data.schema import moment
from turborec.data.store import Store
from turborec.errors import UserError
from turborec.features.plain import plain
from turborec.histories import Users, from_file, read_ids, stored
from turborec.recommend import Lists, Recommendations, candidates_of, recommend

LONGEST_NAME = 200
"""Characters of an item's name in words; a file of recommendations has all of them."""


@dataclass(frozen=True)
class Example:
    """What a run recommends to one user, in words."""

    user: str
    history: list[str]  # the last items, oldest first
    items: list[tuple[str, str, float]]  # raw id, name, score


def example(run: Run, k: int = 10) -> Example:
    """Recommendations for the test user with the median history; items without a name go by their raw id."""
    return examples(run, (0.5,), k)[0]


def examples(run: Run, quantiles: Sequence[float], k: int = 10) -> list[Example]:
    """The same for the test users whose histories have these quantiles of length."""
    names = titles(run.store) or run.store.item_ids.raw(range(run.store.num_items))
    users = run.store.users_of("test")
    order = np.argsort(np.diff(run.store.histories.offsets)[users], kind="stable")
    places = [order[min(int(q * len(users)), len(users) - 1)] for q in quantiles]
    raw_users = list(dict.fromkeys(run.store.user_ids.raw(users[places])))
    run.model.eval()
    with torch.no_grad():
        asked = list(stored(run.store, raw_users))
        lists = asked_at(run, Lists(k=k))
        found = recommend(run.model.scorer(), asked, run.store, lists, run.recipe.batches.max_length, run.device)
        return [one for some, lists in zip(asked, found, strict=True) for one in _in_words(run.store, names, some, lists)]


def _in_words(store: Store, names: list[str], asked: Users, lists: Recommendations) -> Iterator[Example]:
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    for user, history, listed, scores in zip(asked.ids, asked.items, lists.items, lists.scores, strict=True):
        items = listed[listed > 0]
        raw = store.item_ids.raw(items - 1)
        told = [(r, names[i - 1], float(s)) for r, i, s in zip(raw, items, scores, strict=False)]
        yield Example(user, [names[i - 1] for i in history[-5:]], told)


def recommend_for(
    run: Run, lists: Lists, users: list[str] | None, history: Path | None, candidates: Path | None, at: str | None = None
) -> tuple[Iterator[Recommendations], list[str]]:
    """The lists of `users` (ids, or one file of them; everybody when None), and the candidates nobody knows.

    `at`: when they are asked for, as in `asked_at`.
    """
    lists = asked_at(run, lists, at)
    ids: Iterable[str] | None = users
    if users and len(users) == 1 and _is_file(users[0]):
        ids = read_ids(Path(users[0]), run.store, "user")
    elif users and len(users) == 1 and Path(users[0]).suffix in (".txt", ".csv", ".tsv", ".parquet"):
        raise UserError(f"There is no file {users[0]} of user ids.")
    elif users and not all(_is_text(user) for user in users):
        raise UserError("A user's id is empty, or no text in UTF-8: put the ids into a file and name it.")
    ids = None if ids is None else dict.fromkeys(ids)  # who is named twice gets one list
    asked = stored(run.store, ids) if history is None else from_file(run.store, history, ids)
    allowed, unknown = (
        (None, []) if candidates is None else candidates_of(run.store, list(read_ids(candidates, run.store, "item")))
    )
    run.model.eval()
    with torch.no_grad():
        scorer = run.model.scorer()
    return recommend(scorer, asked, run.store, lists, run.recipe.batches.max_length, run.device, allowed), unknown


def asked_at(run: Run, lists: Lists, told: str | None = None) -> Lists:
    """The lists with the moment they are asked for, ISO 8601 or `now`, for models that are told; else the end of the data.

    A UserError where a moment is said to a model that is not told, or cannot be read.
    """
    if not run.recipe.batches.told:
        if told is not None:
            raise UserError(
                "--at says when lists are asked for, and this run's model is not told (batches.request_time: none)."
            )
        return lists
    if told is not None:
        return lists.model_copy(update={"at": round(_seconds(told) * run.store.ticks)})
    known = run.store.card.get("times")
    return lists.model_copy(update={"at": int(known[1])}) if known else lists


def _seconds(told: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, UTC where no zone is named, or of `now`."""
    try:
        return (datetime.now(UTC) if told == "now" else moment(told)).timestamp()
    except ValueError as error:
        raise UserError(f"--at {told} is neither an ISO 8601 time, such as 2024-05-01T18:00, nor `now`.") from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # an id that is too long for a file's name, or holds what none may
        return False


def _is_text(user: str) -> bool:
    return bool(user) and not any(0xD800 <= ord(character) < 0xE000 for character in user)


def titles(store: Store) -> list[str] | None:
    """The items' names in item order: their attribute called title, name or the like, else the raw id; None without one."""
    path = store.folder / "items.parquet"
    if not path.is_file():
        return None
    from pyarrow import parquet

    known = parquet.read_schema(path).names
    likely = ("title", "name", "product", *(c for c in known if c.endswith(("_title", "_name"))))  # such as movie_title
    column = next((c for c in likely if c in known), None)
    if column is None:
        return None
    table = parquet.read_table(path, columns=["item", column]).to_pydict()
    return [plain(name or "") or raw for raw, name in zip(table["item"], table[column], strict=True)]
