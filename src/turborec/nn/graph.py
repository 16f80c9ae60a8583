"""Graphs as sparse matrices: their products with rows of numbers, and gradients that are the same products.

Letters: R rows and C columns of a matrix, E its entries, n nodes, U users, V items, D width, K layers, N wanted rows.
In a graph of users and items node u is user u, and node U + i is item i; node U, the padding item's, has no edge.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 2**31 - 1
"""The largest index that fits into 32 bits, in which a product reads half as much of them."""


class Sparse(nn.Module):
    """A matrix by its rows (CSR). It follows from the data, so no checkpoint carries it."""

    offsets: Tensor  # int32 [R + 1]
    columns: Tensor  # int32 [E]
    weights: Tensor  # float32 [E]

    def __init__(self, rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> None:
        """Entries in any order, none twice: int [E], int [E], float [E]."""
        super().__init__()
        order = torch.argsort(rows.long() * shape[1] + columns)
        counts = torch.bincount(rows.long(), minlength=shape[0])
        index = torch.int32 if max(len(rows), *shape) <= LARGEST else torch.int64
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(index)
        self.shape = shape
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("columns", columns[order].to(index), persistent=False)
        self.register_buffer("weights", weights[order].float(), persistent=False)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and weight of each entry: int64 [E], int64 [E], [E]."""
        lengths = self.offsets.diff().long()
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        return rows, self.columns.long(), self.weights

    def transposed(self) -> "Sparse":
        """The matrix with rows and columns changed over."""
        rows, columns, weights = self.entries()
        return Sparse(columns, rows, weights, (self.shape[1], self.shape[0]))

    def block(self, rows: tuple[int, int], columns: tuple[int, int]) -> "Sparse":
        """The rows and columns from the first of two numbers to the one before the second, as a matrix of their own."""
        row, column, weights = self.entries()
        inside = (row >= rows[0]) & (row < rows[1]) & (column >= columns[0]) & (column < columns[1])
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        return Sparse(row[inside] - rows[0], column[inside] - columns[0], weights[inside], shape)

    def product(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The matrix, or N of its rows, times x, without a gradient: [C, D] -> [R, D], or [N, D]. Sums are in float32.

        On a processor a product is a sum of bags of rows, several times as fast as torch's own sparse products; on an
        accelerator it is that of its vendor's library.
        """
        offsets, columns, weights = self._of(rows)
        weights = weights.to(x.dtype)
        if x.device.type == "cpu":
            found: Tensor = nn.functional.embedding_bag(
                columns, x, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
            )
            return found
        return by_library(offsets, columns, weights, x)

    def _of(self, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets, columns and weights of some rows as a matrix of their own."""
        if rows is None:
            return self.offsets, self.columns, self.weights
        starts = self.offsets.index_select(0, rows)
        lengths = self.offsets.index_select(0, rows + 1) - starts
        ends = lengths.cumsum(0, dtype=self.offsets.dtype)
        total = int(ends[-1]) if len(ends) else 0
        shift = torch.repeat_interleave(starts - ends + lengths, lengths.long(), output_size=total)
        place = shift + torch.arange(total, dtype=shift.dtype, device=shift.device)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return offsets, self.columns.index_select(0, place), self.weights.index_select(0, place)


def by_library(offsets: Tensor, columns: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """The product by torch's own sparse matrices: [R + 1], [E], [E], [C, D] -> [R, D]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says at the first one that they are in beta
        matrix = torch.sparse_csr_tensor(offsets, columns, weights, size=(len(offsets) - 1, len(x)), check_invariants=False)
    found: Tensor = matrix @ x
    return found


class Both(nn.Module):
    """A matrix and its transpose, by which gradients go back; the same one twice where it is symmetric."""

    def __init__(self, forward: Sparse, backward: Sparse | None = None) -> None:
        """`backward` is found from `forward` where it is not given."""
        super().__init__()
        self.ahead = forward
        self.back = forward.transposed() if backward is None else backward

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The matrix, or its rows int64 [N], times x: [C, D] -> [R, D] or [N, D]."""
        product: Tensor = _Product.apply(x, self, rows)  # type: ignore[no-untyped-call]
        return product

    def sums(self, x: Tensor, layers: int, rows: Tensor | None = None) -> Tensor:
        """The sum x + A x + … + A^K x for a symmetric A, or N rows of it: [n, D] -> [n, D] or [N, D].

        By Horner's rule, x + A (x + A (x + …)), forth and back: no layer is kept, and only the last product need know which
        rows are wanted.
        """
        if self.ahead is not self.back:
            raise ValueError("sums need a symmetric matrix: its backward pass is the sum itself")
        summed: Tensor = _Sums.apply(x, self.ahead, layers, rows)  # type: ignore[no-untyped-call]
        return summed


class _Product(torch.autograd.Function):
    """A sparse product; under autocast rows travel in its type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, both: Both, rows: Tensor | None) -> Tensor:
        ctx.both, ctx.dtype, ctx.low = both, x.dtype, _low(x)
        ctx.save_for_backward(rows)
        return both.ahead.product(x.to(ctx.low).contiguous(), rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        whole = _placed(gradient, rows, ctx.both.ahead.shape[0])
        return ctx.both.back.product(whole.to(ctx.low).contiguous()).to(ctx.dtype), None, None


class _Sums(torch.autograd.Function):
    """The sum of powers of a symmetric matrix, times x; sums stay in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Sparse, layers: int, rows: Tensor | None) -> Tensor:
        ctx.matrix, ctx.layers, ctx.low = matrix, layers, _low(x)
        ctx.save_for_backward(rows)
        return _horner(x, matrix, layers, ctx.low, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        whole = _placed(gradient, rows, ctx.matrix.shape[0])
        return _horner(whole, ctx.matrix, ctx.layers, ctx.low), None, None, None


def _horner(x: Tensor, matrix: Sparse, layers: int, low: torch.dtype, rows: Tensor | None = None) -> Tensor:
    own = x if rows is None else x.index_select(0, rows)
    found = own if layers == 0 else x
    for layer in range(1, layers + 1):
        last = layer == layers
        product = matrix.product(found.to(low).contiguous(), rows if last else None)
        found = (own if last else x) + product
    return found


def _low(x: Tensor) -> torch.dtype:
    """The type in which rows are read: autocast's, where it is on."""
    device = x.device.type
    lowered = torch.is_autocast_enabled(device) and x.dtype == torch.float32
    return torch.get_autocast_dtype(device) if lowered else x.dtype


def _placed(gradient: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """The gradient of all rows, from that of some: [N, D] -> [R, D]."""
    if rows is None:
        return gradient
    return gradient.new_zeros(total, gradient.shape[1]).index_add_(0, rows, gradient)


def symmetric(users: Tensor, items: Tensor, sizes: tuple[int, int]) -> Both:
    """The adjacency of users and items with 1 / sqrt(d_u d_i) for each edge, as LightGCN has it: pairs [E] -> n x n.

    `sizes` are U and V; an edge is a pair of a user 0..U - 1 and an item 1..V, none twice.
    """
    rows, columns, degrees = edges(users, items, sizes)
    weights = (degrees[rows].double() * degrees[columns]).rsqrt()
    return Both(matrix := Sparse(rows, columns, weights, (len(degrees), len(degrees))), matrix)


def means(users: Tensor, items: Tensor, sizes: tuple[int, int]) -> Both:
    """The matrix by which each node gets the mean of its neighbours, and one without neighbours zero: pairs [E] -> n x n."""
    rows, columns, degrees = edges(users, items, sizes)
    shape = (len(degrees), len(degrees))
    ahead, back = (Sparse(rows, columns, degrees[of].double().reciprocal(), shape) for of in (rows, columns))
    return Both(ahead, back)


def edges(users: Tensor, items: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Both directions of each edge, and the degrees of the nodes: int64 [2 E], int64 [2 E], int64 [n]."""
    owners, owned = users.long(), items.long() + sizes[0]
    rows, columns = torch.cat([owners, owned]), torch.cat([owned, owners])
    return rows, columns, torch.bincount(rows, minlength=sizes[0] + sizes[1] + 1)


def distinct(nodes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The nodes of several lists, each once, and where those of each list are among them: int64 [N], int64 [B] each."""
    found, place = torch.unique(torch.cat(list(nodes)), return_inverse=True)
    return found, list(place.split([len(part) for part in nodes]))
