"""Sparse matrices as dense ones, for tests."""

import torch


def dense(matrix):
    """The matrix in float64, entry by entry."""
    found = torch.zeros(matrix.shape, dtype=torch.float64)
    for row, column, weight in zip(*(part.tolist() for part in matrix.entries()), strict=True):
        assert found[row, column] == 0
        found[row, column] = weight
    return found
