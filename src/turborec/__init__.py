"""turborec trains modern recommenders, from raw interactions to a result that can be trusted and used."""

__version__ = "0.1.0"
