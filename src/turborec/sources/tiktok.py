"""Videos of TikTok with numbers that describe their images and sounds, split once for all.

    interactions.parquet                user_id, item_id, split (train, valid or test)
    image_feat.npy, audio_feat.npy      float16 [items, 128]; row i is the item whose item_id is i

W. Wei, C. Huang, L. Xia and C. Zhang, Multi-Modal Self-Supervised Learning for Recommendation (MMSSL), WWW 2023;
Y. Jiang and others, DiffMM: Multi-Modal Diffusion Model for Recommendation, ACM Multimedia 2024. Their text features are
not among these files.
"""

from pathlib import Path
from typing import Literal

from turborec import recipe
from turborec.data.schema import Columnar, FeatureTable, RawTable, RawTables
from turborec.errors import UserError
from turborec.sources._local import HINT, places

TERMS = "TikTok micro-video data as prepared by MMSSL and DiffMM; no licence stated."
FOLDER = "tiktok-mm"
EVENTS = "interactions.parquet"
FEATURES = {"audio": "audio_feat.npy", "image": "image_feat.npy"}


class Config(recipe.Config):
    """Three files of one folder: the raw folder, or `tiktok-mm` in it or below TURBOREC_DATA; for the split `labelled`.

    Nobody knows the times. A user's events are in the order of the file, which means nothing.
    """

    kind: Literal["tiktok"] = "tiktok"

    def download(self, folder: Path) -> None:
        """Look whether the files are there."""
        self._home(folder)

    def parse(self, folder: Path) -> RawTables:
        """Describe the files."""
        home = self._home(folder)
        select = {"user": "user_id", "item": "item_id", "label": "split"}
        return RawTables(
            events=RawTable((home / EVENTS,), Columnar(), select),
            features={name: FeatureTable(home / file) for name, file in FEATURES.items()},
            terms=TERMS,
        )

    def _home(self, folder: Path) -> Path:
        """The folder that has all of them."""
        names = (EVENTS, *FEATURES.values())
        looked = [folder, *places(FOLDER, folder)]
        for place in looked:
            if all((place / name).is_file() for name in names):
                return place
        raise UserError(f"Expected {', '.join(names)} side by side in {' or '.join(map(str, looked))}. {HINT}")
