"""MMRec's folders: events split once for all, and numbers that describe the items' images and texts.

NAME/NAME.inter is tab-separated text with a header; x_label says the part, 0 training, 1 validation and 2 test:

    userID <tab> itemID <tab> rating <tab> timestamp <tab> x_label

Beside it lie image_feat.npy (baby, sports and clothing: items x 4096), text_feat.npy (items x 384) and others of that kind;
row i of each is the item whose itemID is i.

X. Zhou, MMRec: simplifying multimodal recommendation, MMAsia 2023 workshops.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from turborec import recipe
from turborec.data.schema import FeatureTable, RawTable, RawTables, Text
from turborec.errors import UserError, closest
from turborec.sources._atomic import DERIVED, chosen_of, columns_of, derived
from turborec.sources._local import HINT, places, plain_or_packed

FEATURES = "_feat.npy"
ADDRESS = "https://github.com/enoche/MMRec"


class Config(recipe.Config):
    """The folder NAME, where NAME is the last part of `name`; MMRec's page names who keeps such folders.

    Its files are looked for in the raw folder, in `name` inside it, and in `name` below TURBOREC_DATA. They go with
    the split `labelled`; with `label: null` the events may be split in another way.
    """

    kind: Literal["mmrec"] = "mmrec"
    name: str = Field(min_length=1)
    features: tuple[str, ...] | None = None  # such as image, for image_feat.npy; None: all that are there
    user: str = "userID"
    item: str = "itemID"
    label: str | None = "x_label"
    time: str | None = None  # None: timestamp, where there is one
    time_format: Literal["seconds", "milliseconds"] = "seconds"
    value: str | None = None  # None: rating, where there is one

    def download(self, folder: Path) -> None:
        """Look whether the files are there."""
        self._features(self._events(folder))

    def parse(self, folder: Path) -> RawTables:
        """Describe the events, compressed or not, and the arrays beside them."""
        path = self._events(folder)
        named = {"user": self.user, "item": self.item, "time": self.time, "value": self.value, "label": self.label}
        chosen = chosen_of(named, columns_of(path, "\t"), path)
        select = {name: column for name, column in chosen.items() if name not in DERIVED}
        events = RawTable((path,), Text("\t", header=True), select, derive=derived(chosen))
        return RawTables(events, time=self.time_format, features=self._features(path))

    def _events(self, folder: Path) -> Path:
        name = f"{Path(self.name).name}.inter"
        looked = [folder, *places(self.name, folder)]
        found = next((path for place in looked if (path := plain_or_packed(place / name))), None)
        if found is None:
            where = " or ".join(map(str, looked))
            raise UserError(
                f"Expected {name}, with or without .gz or .bz2, in {where}. {ADDRESS} says where to fetch it. {HINT}"
            )
        return found

    def _features(self, events: Path) -> dict[str, FeatureTable]:
        """The tables that are wanted, by name."""
        found = {path.name.removesuffix(FEATURES): path for path in sorted(events.parent.glob(f"[!.]*{FEATURES}"))}
        wanted = tuple(found) if self.features is None else self.features
        for name in wanted:
            if name not in found:
                told = f"there are {', '.join(found)}" if found else "there are none at all"
                raise UserError(
                    f"There is no {name}{FEATURES} beside {events}{closest(name, tuple(found))}: {told}. Name those in "
                    "features that are wanted."
                )
        return {name: FeatureTable(found[name]) for name in wanted}
