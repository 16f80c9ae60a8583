"""Make the bundled Online Retail files from the original table: `python tools/make_online_retail.py transactions.parquet`.

The original has the columns InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID, Country and
the row order of the publication; UCI gives it as a spreadsheet, CRAN's package onlineretail as a data frame.
"""

import sys
from pathlib import Path

import duckdb

FILES = Path(__file__).parents[1] / "src" / "turborec" / "sources" / "files"

# A product's code is five digits, or five digits and letters; POST, D, M, C2, BANK CHARGES and the like are not goods.
PURCHASES = """
    CREATE TABLE purchases AS
    SELECT CustomerID AS customer, StockCode AS product, epoch(InvoiceDate)::BIGINT AS time, trim(Description) AS name,
        row_number() OVER (PARTITION BY CustomerID ORDER BY InvoiceDate, file_row_number) - 1 AS place
    FROM read_parquet(?, file_row_number = true)
    WHERE CustomerID IS NOT NULL AND InvoiceNo NOT LIKE 'C%' AND Quantity > 0 AND UnitPrice > 0
        AND regexp_full_match(StockCode, '[0-9]{5}[A-Za-z]*')
"""
EVENTS = """
    SELECT customer::INTEGER AS customer, product, time, place::INTEGER AS "order" FROM purchases ORDER BY customer, place
"""
# The most frequent description of all; of equally frequent ones the alphabetically first.
ITEMS = """
    SELECT product, first(name ORDER BY times DESC, name) AS name
    FROM (SELECT product, name, count(*) AS times FROM purchases WHERE name <> '' GROUP BY product, name)
    GROUP BY product ORDER BY product
"""
FORMAT = "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 19, ROW_GROUP_SIZE 1000000)"


def main(original: Path) -> None:
    """Write both files and say what is in them."""
    con = duckdb.connect()
    con.execute("SET threads = 1")  # one thread writes the same bytes every time
    con.execute(PURCHASES, [str(original)])
    for name, query in (("events", EVENTS), ("items", ITEMS)):
        path = FILES / f"online_retail_{name}.parquet"
        con.execute(f"COPY ({query}) TO '{path}' {FORMAT}")
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    counts = "SELECT count(*), count(DISTINCT customer), count(DISTINCT product) FROM purchases"
    print("events, customers, products:", *con.execute(counts).fetchall()[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
