"""One file per raw data set: where it comes from, its terms, and how its files read as raw tables."""
