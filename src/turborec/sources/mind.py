"""MIND: what users of Microsoft News were shown and clicked, and the texts of the news.

F. Wu et al., MIND: A Large-scale Dataset for News Recommendation, ACL 2020. Layout: msnews.github.io.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from turborec import recipe
from turborec.data.schema import ENTRY, LIST, PLACE, Listed, RawTable, RawTables, Text
from turborec.errors import UserError
from turborec.sources._fetch import Remote, fetch, show_terms
from turborec.sources._local import plain_or_packed
from turborec.sources._unpack import unpack

TERMS = (
    "MIND by Microsoft, Microsoft Research Licence: for research that is not commercial, not to be handed on; cite Wu et al., "
    "ACL 2020."
)
ADDRESS = "https://recodatasets.z20.web.core.windows.net/newsrec"
GENERATED = "GENERATED.txt"
"""Beside files that are none of MIND's, and says whose they are."""
BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
MINI = 1000
"""Impressions of each part of the edition mini."""

BEHAVIOR = ("impression", "user", "time", "history", "impressions")
ARTICLE = ("item", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")

Part = Literal["train", "dev"]


def _terms(folder: Path) -> str:
    """Whose data it is; what was generated says so itself."""
    note = folder / GENERATED
    told = note.read_text(encoding="utf-8", errors="replace").strip().splitlines()[:1] if note.is_file() else []
    return f"Generated, not MIND: {told[0]}" if told else TERMS


def _clock(time: str) -> str:
    """SQL that writes `M/D/YYYY h:mm:ss AM` in ISO 8601; what is none becomes something that is none either."""

    def two(text: str) -> str:
        return f"CASE WHEN length({text}) = 1 THEN concat('0', {text}) ELSE {text} END"

    day, hour, half = (f"split_part({time}, ' ', {number})" for number in (1, 2, 3))
    number = f"split_part({hour}, ':', 1)"
    first, second = f"split_part({day}, '/', 1)", f"split_part({day}, '/', 2)"
    turned = " ".join(f"WHEN '{twelve}{word}' THEN '{full}'" for twelve, word, full in _HOURS)
    return (
        f"concat(split_part({day}, '/', 3), '-', {two(first)}, '-', {two(second)}, 'T', "
        f"CASE concat({number}, {half}) {turned} ELSE '?' END, substr({hour}, length({number}) + 1))"
    )


_HOURS = [
    (text, word, f"{hour % 12 + 12 * (word == 'PM'):02}")
    for word in ("AM", "PM")
    for hour in range(1, 13)
    for text in dict.fromkeys((str(hour), f"{hour:02}"))
]
"""How twelve hours are written, and which of twenty-four each is."""


class Config(recipe.Config):
    """An edition. Events: the histories, of unknown time, and then the clicks by the time of their impression; items: news.

    A user's history stands in all of the user's impressions and counts once, in whichever part it comes first. A story that
    is there twice is two events, and an empty history none. Kinds are `history` and `click`.
    """

    kind: Literal["mind"] = "mind"
    edition: Literal["demo", "small", "large", "mini"] = "small"  # mini: the first impressions of small's parts, with all news
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("train", "dev")  # in this order: later files go on from earlier
    address: str | None = None  # of a copy of the archives; None: the collectors' own

    def download(self, folder: Path) -> None:
        """Fetch and unpack the archives of parts whose files do not lie in `folder`; nobody states checksums."""
        missing = [part for part in self.parts if not all(self._find(part, name, folder) for name in (BEHAVIORS, NEWS))]
        if missing:
            show_terms(TERMS, folder)
        for part in missing:
            name = self._archive(part)
            archive = fetch(Remote(f"{(self.address or ADDRESS).rstrip('/')}/{name}.zip", f"{name}.zip"), folder)
            unpack(archive, [BEHAVIORS, NEWS], folder / name)

    def parse(self, folder: Path) -> RawTables:
        """Describe the files: of a part in a folder named as its archive, or `train` and `dev`, packed or not."""
        found = {name: [self._find(part, name, folder) for part in self.parts] for name in (BEHAVIORS, NEWS)}
        for name, paths in found.items():
            if lacking := [part for part, path in zip(self.parts, paths, strict=True) if path is None]:
                raise UserError(
                    f"MIND {self.edition} needs {name} of {lacking[0]}, with or without .gz; expected in "
                    f"{folder / self._archive(lacking[0])} or in {folder / lacking[0]}."
                )
        first = MINI if self.edition == "mini" else None
        clicked = f"\"{LIST}\" = 'impressions'"
        named = f"""CASE WHEN "{ENTRY}" LIKE '%-1' THEN substr("{ENTRY}", 1, length("{ENTRY}") - 2) ELSE '' END"""
        item = f'CASE WHEN {clicked} THEN {named} ELSE "{ENTRY}" END'
        when = _clock('"time"')
        digits = f"replace(replace(replace({when}, '-', ''), 'T', ''), ':', '')"
        behaviors = tuple(filter(None, found[BEHAVIORS]))
        return RawTables(
            events=RawTable(
                behaviors,
                Listed(Text("\t", BEHAVIOR), ("history", "impressions"), once=("history", "user"), first=first),
                select={"user": "user"},
                # An entry of an impression is a story, `-`, and whether it was clicked.
                where=f"NOT ({clicked} AND \"{ENTRY}\" LIKE '%-0')",
                derive={
                    "item": item,
                    "time": f"CASE WHEN {clicked} THEN {when} ELSE '' END",
                    # Fourteen digits of a time come after any place in a history.
                    "order": f'CASE WHEN {clicked} THEN {digits} ELSE "{PLACE}" END',
                    "kind": f"CASE WHEN {clicked} THEN 'click' ELSE 'history' END",
                },
            ),
            items=RawTable(
                tuple(filter(None, found[NEWS])),
                Text("\t", ARTICLE),
                {name: name for name in ("item", "title", "abstract", "category", "subcategory")},
            ),
            impressions=RawTable(
                behaviors,
                Listed(Text("\t", BEHAVIOR), ("impressions",), first=first),
                select={"user": "user"},
                derive={
                    "item": f"""CASE WHEN "{ENTRY}" LIKE '%-_' THEN substr("{ENTRY}", 1, length("{ENTRY}") - 2) ELSE '' END""",
                    "time": when,
                    "clicked": f'right("{ENTRY}", 1)',
                },
            ),
            time="iso",
            terms=_terms(folder),
        )

    def _find(self, part: Part, name: str, folder: Path) -> Path | None:
        places = (folder / self._archive(part), folder / part, *([folder] if self.parts == (part,) else []))
        return next(filter(None, (plain_or_packed(place / name) for place in places)), None)

    def _archive(self, part: Part) -> str:
        return f"MIND{'small' if self.edition == 'mini' else self.edition}_{part}"
