"""Online Retail: a year of purchases at a British online shop for gifts, bundled with turborec.

D. Chen, S. L. Sain and K. Guo, Data mining for the online retail industry, J. Database Marketing 19(3), 2012.
"""

from pathlib import Path
from typing import Literal

from turborec import recipe
from turborec.data.schema import Columnar, RawTable, RawTables

FILES = Path(__file__).parent / "files"
TERMS = (
    "Online Retail by Daqing Chen (UCI Machine Learning Repository), CC0 by the CRAN package onlineretail, with his "
    "permission, and CC BY 4.0 by UCI: free for any use; please give credit, doi:10.1057/dbm.2012.17."
)


class Config(recipe.Config):
    """Purchases by known customers; items are products with a name.

    `files/online_retail_NOTICE.txt` says what was left out (cancellations, rows without customer or price, fees and
    postage). A customer buys the same product again and again, and every purchase is an event. The time is the minute
    of the invoice by the shop's clock, read as UTC; `order` keeps the order of the lines on an invoice.
    """

    kind: Literal["online_retail"] = "online_retail"

    def download(self, folder: Path) -> None:
        """Nothing: the files come with turborec."""

    def parse(self, folder: Path) -> RawTables:
        """Describe the bundled files."""
        return RawTables(
            events=RawTable(
                paths=(FILES / "online_retail_events.parquet",),
                layout=Columnar(),
                select={"user": "customer", "item": "product", "time": "time", "order": "order"},
            ),
            items=RawTable(
                paths=(FILES / "online_retail_items.parquet",),
                layout=Columnar(),
                select={"item": "product", "title": "name"},
            ),
            terms=TERMS,
        )
