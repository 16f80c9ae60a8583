"""The attributes of a store's items: which there are, and their texts."""

from turborec.data.store import Store


def columns(store: Store) -> list[str]:
    """The names of the attributes; none where the source described no items."""
    import pyarrow.parquet as pq

    path = store.folder / "items.parquet"
    return [name for name in pq.read_schema(path).names if name != "item"] if path.is_file() else []


def texts(store: Store, column: str) -> list[str | None]:
    """One of the `columns`: the text of each item, item i at i - 1; None where nobody tells it."""
    import pyarrow.parquet as pq

    found: list[str | None] = pq.read_table(store.folder / "items.parquet", columns=[column]).column(0).to_pylist()
    return found
