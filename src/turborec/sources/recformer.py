"""The files that RecFormer's own code reads: `turborec data export --format recformer` writes them.

    train.json, val.json, test.json   {user: [item, …]}, by numbers
    umap.json, smap.json              {raw id: number} of users and of items
    meta_data.json                    {raw item id: {attribute: text}}

J. Li et al., Text Is All You Need, KDD 2023; the layout is that of github.com/AaronHeee/RecFormer.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from turborec import recipe
from turborec.data.schema import ENTRY, FILE_STEP, KEY, LINE, PLACE, JsonObject, Lookup, RawTable, RawTables
from turborec.errors import UserError
from turborec.sources._local import HINT, places, plain_or_packed

PARTS = {"train": "train", "val": "valid", "test": "test"}

LONGEST = 2**32
"""Entries of a list, at most."""


class Config(recipe.Config):
    """The six files in the raw folder, in `name` inside it, or in `name` below TURBOREC_DATA; the split must be labelled."""

    kind: Literal["recformer"] = "recformer"
    name: str = "."
    attributes: tuple[str, ...] = Field(("title", "brand", "category"), min_length=1)  # of the items, which are kept

    label: Literal["files"] | None = "files"  # they say which part an event belongs to; null: split anew

    def download(self, folder: Path) -> None:
        """Look whether the files are there."""
        self._home(folder)

    def parse(self, folder: Path) -> RawTables:
        """Describe the files, compressed or not."""
        home = self._home(folder)

        numbers = {"key": ENTRY, "value": KEY}
        users, items = (RawTable((_file(home, name),), JsonObject(), numbers) for name in ("umap", "smap"))
        return RawTables(
            events=RawTable(
                tuple(_file(home, part) for part in PARTS),
                JsonObject(),
                {},
                # By file, then by place in the list: it holds where they are split anew, too.
                derive={"order": f'divide("{LINE}", {FILE_STEP}) * {LONGEST} + CAST("{PLACE}" AS BIGINT)'},
                constants={"label": tuple(PARTS.values())} if self.label else {},
                lookups={"user": Lookup(KEY, users), "item": Lookup(ENTRY, items)},
            ),
            items=RawTable(
                (_file(home, "meta_data"),), JsonObject(self.attributes), {"item": KEY, **{n: n for n in self.attributes}}
            ),
        )

    def _home(self, folder: Path) -> Path:
        searched = places(self.name, folder)
        for place in searched:
            if all(plain_or_packed(place / f"{name}.json") for name in (*PARTS, "umap", "smap", "meta_data")):
                return place
        raise UserError(
            f"RecFormer's files train.json, val.json, test.json, umap.json, smap.json and meta_data.json, with or without .gz, "
            f"are not in {', '.join(map(str, searched))}. {HINT}"
        )


def _file(home: Path, name: str) -> Path:
    found = plain_or_packed(home / f"{name}.json")
    assert found is not None  # looked for before
    return found
