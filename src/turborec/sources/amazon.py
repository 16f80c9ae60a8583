"""Amazon reviews: ratings and descriptions of products by category, in the editions of 2014 and 2018.

2014: J. McAuley, C. Targett, Q. Shi and A. van den Hengel, Image-based recommendations on styles and substitutes, SIGIR
2015. 2018: J. Ni, J. Li and J. McAuley, Justifying recommendations using distantly-labeled reviews, EMNLP 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from turborec import recipe
from turborec.data.schema import JsonLines, RawTable, RawTables
from turborec.errors import UserError, closest
from turborec.sources._fetch import Remote, fetch, show_terms
from turborec.sources._local import plain_or_packed

TERMS = (
    "Amazon reviews collected by the group of J. McAuley, UC San Diego: no licence is stated, the reviews belong to their "
    "authors and to Amazon; cite the paper of the edition."
)
REVIEW = ("reviewerID", "asin", "overall", "unixReviewTime")

SHARED = (
    *("Automotive", "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music"),
    *("Electronics", "Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV", "Musical_Instruments"),
    *("Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors", "Tools_and_Home_Improvement"),
    *("Toys_and_Games", "Video_Games"),
)
"""The categories that both editions have."""


@dataclass(frozen=True)
class _Edition:
    """Where the files of an edition lie below its address, how they are called and what its products are described by."""

    address: str
    reviews: str
    core: str  # the reviews of users and products that have five at least
    products: str
    syntax: Literal["json", "python"]  # of the products; reviews are JSON in both
    attributes: Mapping[str, str]  # our name -> key
    categories: tuple[str, ...]


EDITIONS = {
    2014: _Edition(
        address="https://snap.stanford.edu/data/amazon/productGraph",
        reviews="categoryFiles/reviews_{}.json",
        core="categoryFiles/reviews_{}_5.json",
        products="categoryFiles/meta_{}.json",
        syntax="python",
        attributes={name: name for name in ("title", "brand", "categories", "price", "description")},
        categories=(*SHARED, "Amazon_Instant_Video", "Apps_for_Android", "Baby", "Beauty", "Health_and_Personal_Care"),
    ),
    2018: _Edition(
        address="https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
        reviews="categoryFiles/{}.json",
        core="categoryFilesSmall/{}_5.json",
        products="metaFiles2/meta_{}.json",
        syntax="json",
        attributes={
            **{"title": "title", "brand": "brand", "categories": "category", "price": "price"},
            **{"description": "description", "features": "feature"},
        },
        categories=(
            *SHARED,
            *("AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Gift_Cards"),
            *("Industrial_and_Scientific", "Luxury_Beauty", "Magazine_Subscriptions", "Prime_Pantry", "Software"),
        ),
    ),
}


class Config(recipe.Config):
    """A category. Events: reviews with rating and time, whole days in seconds; items: products with their texts.

    Text in lists, such as the categories of a product, is joined by `|`; sales ranks and related products are left out.
    """

    kind: Literal["amazon"] = "amazon"
    edition: Literal[2014, 2018]
    category: str  # as the files are called, such as Video_Games
    reviews: Literal["5-core", "all"] = "5-core"  # the files of users and products with five reviews at least, or of all
    items: bool = True  # whether products are described, by a file that may be larger than that of the reviews
    address: str | None = None  # of a copy of the edition's folders; None: the collectors' own

    @model_validator(mode="after")
    def _known_category(self) -> Self:
        known = EDITIONS[self.edition].categories
        if self.category not in known:
            raise ValueError(f"category: the edition of {self.edition} has no {self.category!r}{closest(self.category, known)}")
        return self

    @property
    def known_items(self) -> int | None:
        """How many items there are, where that is known without the data: Electronics of 2018, as a study of sizes had it."""
        return 159_749 if (self.edition, self.category, self.reviews) == (2018, "Electronics", "5-core") else None

    def download(self, folder: Path) -> None:
        """Fetch what does not lie in `folder` yet; nobody states checksums, so the first that comes is trusted."""
        missing = [name for name in self._names() if not self._find(name, folder)]
        if missing:
            show_terms(TERMS, folder)
        address = (self.address or EDITIONS[self.edition].address).rstrip("/")
        for name in missing:
            fetch(Remote(f"{address}/{name}.gz", f"{Path(name).name}.gz"), folder / str(self.edition))

    def parse(self, folder: Path) -> RawTables:
        """Describe the reviews and the products: in `folder` or in that of the edition inside it, packed or not."""
        edition = EDITIONS[self.edition]
        found = {name: self._find(name, folder) for name in self._names()}
        missing = [Path(name).name for name, path in found.items() if path is None]
        if missing:
            raise UserError(
                f"Amazon {self.category} of {self.edition} needs {' and '.join(missing)}, with or without .gz; expected in "
                f"{folder / str(self.edition)} or in {folder}."
            )
        reviews, *products = filter(None, found.values())
        user, item, value, time = REVIEW
        items = None
        if products:
            layout = JsonLines(("asin", *edition.attributes.values()), syntax=edition.syntax)
            items = RawTable(tuple(products), layout, {"item": "asin", **edition.attributes})
        events = {"user": user, "item": item, "value": value, "time": time}
        return RawTables(RawTable((reviews,), JsonLines(REVIEW), events), items, terms=TERMS)

    def _names(self) -> list[str]:
        """The files that are needed, below the edition's address and without .gz."""
        edition = EDITIONS[self.edition]
        names = [edition.core if self.reviews == "5-core" else edition.reviews, *[edition.products] * self.items]
        return [name.format(self.category) for name in names]

    def _find(self, name: str, folder: Path) -> Path | None:
        """The products of both editions are called alike, so each edition is fetched into a folder of its own."""
        places = (folder / str(self.edition), folder)
        return next(filter(None, (plain_or_packed(place / Path(name).name) for place in places)), None)
