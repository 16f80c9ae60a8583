"""Raw tables to prepared stores to batches."""
