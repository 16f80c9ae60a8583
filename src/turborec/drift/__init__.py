"""Whether data have moved, whether a model has lost, and why."""
