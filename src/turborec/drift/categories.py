"""The categories of items: which attribute tells them, and which of them each item is of.

Letters: V items, N pairs of an item and a category, C categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turborec.errors import UserError, closest

Int64 = NDArray[np.int64]

OBVIOUS = ("genres", "genre", "category", "categories", "category_id", "class")
"""Attributes that are taken for the categories where a store has exactly one of them."""
MOST = 256
"""Categories that are told apart; where there are more, those with the fewest events are one, called `other`."""
OTHER = "other"


@dataclass(frozen=True)
class Categories:
    """Which categories each item is of. An event counts once for each of its item's."""

    column: str  # the attribute that tells them
    names: tuple[str, ...]  # [C]
    starts: Int64  # [V + 2]: those of item i are codes[starts[i] : starts[i + 1]]
    codes: Int64  # [N]


def chosen(columns: Sequence[Sequence[str]], asked: str | None) -> tuple[str | None, str]:
    """The attribute that tells the categories in all stores, whose attributes these are; and why there is none.

    A `UserError` where the one that is asked for is not there.
    """
    if asked is not None:
        for found in columns:
            if asked not in found:
                there = f"they have {', '.join(found)}" if found else "the source describes no items"
                raise UserError(f"--category: the items have no column {asked!r}{closest(asked, list(found))}; {there}.")
        return asked, ""
    shared = [name for name in columns[0] if all(name in found for found in columns[1:])]
    obvious = [name for name in shared if name.casefold() in OBVIOUS]
    if len(obvious) == 1:
        return obvious[0], ""
    if not shared:
        return None, "Categories are not looked at: the items have no attributes."
    why = f"{' and '.join(obvious)} could tell them" if obvious else "no column of the items is called so"
    return None, f"Categories are not looked at: {why}. Name one with --category: {', '.join(shared)}."


def of_texts(column: str, texts: Sequence[str | None], separator: str, events: Int64) -> Categories:
    """The categories in the texts of the items 1 .. V, an entry each, of which item i has `events[i]` events: [V + 1]."""
    entries = [list(dict.fromkeys(filter(None, map(str.strip, (text or "").split(separator))))) for text in texts]
    often: dict[str, int] = {}
    for found, number in zip(entries, events[1:].tolist(), strict=True):
        for name in found:
            often[name] = often.get(name, 0) + number
    names = sorted(often, key=lambda name: (-often[name], name))
    kept = names if len(names) <= MOST else [*(name for name in names[: MOST - 1] if name != OTHER), OTHER]
    code = {name: place for place, name in enumerate(kept)}
    coded = [list(dict.fromkeys(code.get(name, len(kept) - 1) for name in found)) for found in entries]
    lengths = [0, *map(len, coded)]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Categories(column, tuple(kept), starts, np.asarray([one for found in coded for one in found], dtype=np.int64))
