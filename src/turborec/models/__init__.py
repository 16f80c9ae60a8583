"""One file per model: its `Config` and its module."""
