"""What is known of items beside who chose them: tables of numbers, one a modality, some of whose rows are missing.

Letters: V items, F width of a table, D width, M modalities.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from turborec.errors import UserError, closest

LEAST = 1e-4
"""Of the greatest variance of a direction, below which one is noise."""


class Modality(nn.Module):
    """One table. It comes back with the data, so no checkpoint carries it."""

    values: Tensor  # float32 [V + 1, F], zero where an item has none
    there: Tensor  # bool [V + 1]

    def __init__(self, table: Tensor, centred: bool = False, whitened: bool = False) -> None:
        """`table` [V + 1, F]; a row that is NaN is missing. `centred`: less the mean of the rows, their mean square norm 1.

        `whitened`: centred, and then of the same variance in every direction that they have (Su et al. 2021, arXiv 2103.15316):
        sentence vectors lie in a narrow cone, whose width says more of language than of what tells items apart.
        """
        super().__init__()
        missing = table.isnan().any(1)
        values = table.float()
        if (centred or whitened) and not missing.all():
            values = values - values[~missing].mean(0)
            if whitened:
                values = values @ _whitening(values[~missing])
            values = values / values[~missing].square().sum(1).mean().sqrt().clamp(min=1e-12)
        self.register_buffer("values", values.masked_fill(missing[:, None], 0.0), persistent=False)
        self.register_buffer("there", ~missing, persistent=False)

    @property
    def width(self) -> int:
        """F."""
        return self.values.shape[1]


def _whitening(rows: Tensor) -> Tensor:
    """[N, F] with mean zero -> [F, F]; directions of hardly any variance, which are noise, are left at nothing."""
    covariance = rows.double().T @ rows.double() / len(rows)
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > LEAST * variances[-1]
    scaled = directions[:, kept] / variances[kept].sqrt()
    whitening: Tensor = (scaled @ directions[:, kept].T).float()
    return whitening


class Modalities(nn.Module):
    """Several tables by name."""

    def __init__(
        self, features: Mapping[str, Tensor], wanted: Sequence[str] | None, centred: bool = False, whitened: bool = False
    ) -> None:
        """The tables of these names, all where none are named; a UserError where there are none, or not one of them."""
        super().__init__()
        if not features:
            raise UserError(
                "This model needs features of the items, and the data have none: choose a source that has some, such as "
                "mmrec, or name a table in data.features (docs/data-sets.md)."
            )
        for name in wanted or ():
            if name not in features:
                raise UserError(f"There are no features {name!r}{closest(name, list(features))}.")
        if wanted and len(set(wanted)) < len(wanted):
            raise UserError(f"Each table is to be named once in model.features: got {', '.join(wanted)}.")
        self.names = list(wanted or features)
        self.tables = nn.ModuleDict({part_of(name): Modality(features[name], centred, whitened) for name in self.names})

    def __getitem__(self, name: str) -> Modality:
        table = self.tables[part_of(name)]
        assert isinstance(table, Modality)
        return table

    def each(self) -> list[tuple[str, Modality]]:
        """Names with their tables."""
        return [(name, self[name]) for name in self.names]

    def told(self) -> str:
        """How many items each table has a row of."""
        rows = [(name, one.there[1:], one.width) for name, one in self.each()]
        return ", ".join(f"{name} of {int(there.sum()):,} of {len(there):,} items ({width})" for name, there, width in rows)


def part_of(name: str) -> str:
    """How a module calls its part for a modality, whose own name may be one that `nn.ModuleDict` has, such as `type`."""
    return f"of_{name}"


def shares(weights: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """What each modality counts, together 1: [M]; all the same where nothing is said."""
    strange = [name for name in weights if name not in names]
    if strange or (weights and len(weights) < len(names)):
        raise UserError(f"modality_weights must name {', '.join(names)}, each once: got {', '.join(weights)}.")
    if weights and (min(weights.values()) < 0 or not 0 < sum(weights.values()) < math.inf):
        told = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
        raise UserError(f"modality_weights are shares, at least 0 each and more than 0 together: got {told}.")
    stated = torch.tensor([weights.get(name, 1.0) for name in names], dtype=torch.float64)
    return (stated / stated.sum()).float()
