"""What a source is: one file of this folder whose `Config` names a raw data set, brings it and describes it."""

from pathlib import Path
from typing import Protocol

from turborec.data.schema import RawTables


class Source(Protocol):
    """A raw data set. `download` does all the input and output there is; `parse` only describes what lies there."""

    @property
    def kind(self) -> str:
        """The name of the source's file."""
        ...

    def download(self, folder: Path) -> None:
        """Make the raw files be in `folder`: those that lie there already, else fetched, unpacked or generated."""
        ...

    def parse(self, folder: Path) -> RawTables:
        """Describe the raw files; a missing one is a UserError that says where it was looked for."""
        ...
