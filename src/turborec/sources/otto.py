"""OTTO: the sessions of a large German web shop, with clicks, carts and orders.

P. Normann, S. Baumeister and T. Wilm, OTTO Recommender Systems Dataset, 2022, github.com/otto-de/recsys-dataset.
"""

from pathlib import Path
from typing import Literal

from turborec import recipe
from turborec.data.schema import JsonLines, RawTable, RawTables
from turborec.errors import UserError
from turborec.sources._local import HINT, places, plain_or_packed

TERMS = "OTTO Recommender Systems Dataset by OTTO (GmbH & Co KG), CC BY 4.0: free for any use with credit to OTTO."
ADDRESS = "https://www.kaggle.com/datasets/otto/recsys-dataset"


class Config(recipe.Config):
    """Sessions as users; an event is of the kind `clicks`, `carts` or `orders`, its time in milliseconds.

    The file holds a session a line: `{"session": 0, "events": [{"aid": 1517085, "ts": 1659304800025, "type": "clicks"},
    ...]}`. It is fetched by hand, because Kaggle asks for a login.
    """

    kind: Literal["otto"] = "otto"
    events: str = "train.jsonl"  # with .gz or .bz2 or not; in the raw folder, else below TURBOREC_DATA

    def download(self, folder: Path) -> None:
        """Look whether the file is there."""
        self._find(folder)

    def parse(self, folder: Path) -> RawTables:
        """Describe the file."""
        return RawTables(
            events=RawTable(
                paths=(self._find(folder),),
                layout=JsonLines(("session", "aid", "ts", "type"), rows="events"),
                select={"user": "session", "item": "aid", "time": "ts", "kind": "type"},
            ),
            time="milliseconds",
            terms=TERMS,
        )

    def _find(self, folder: Path) -> Path:
        looked = places(self.events, folder)
        found = next(filter(None, map(plain_or_packed, looked)), None)
        if found is None:
            raise UserError(
                f"OTTO's sessions should be {' or '.join(map(str, looked))}, with or without .gz or .bz2, but are not. Fetch "
                f"them from {ADDRESS} (it asks for a login) and unpack them there. {HINT}"
            )
        return found
