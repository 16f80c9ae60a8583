"""What is known of items beside who chose them: tables of numbers, one a modality, some of whose rows are missing.

Letters: V items, F width of a table, D width, M modalities.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from turborec.errors import UserError, closest


class Modality(nn.Module):
    """One table. It comes back with the data, so no checkpoint carries it."""

    values: Tensor  # float32 [V + 1, F], zero where an item has none
    there: Tensor  # bool [V + 1]

    def __init__(self, table: Tensor, centred: bool = False) -> None:
        """`table` [V + 1, F]; a row that is NaN is missing. `centred`: less the mean of the rows, their mean square norm 1."""
        super().__init__()
        missing = table.isnan().any(1)
        values = table.float()
        if centred and not missing.all():
            values = values - values[~missing].mean(0)
            values = values / values[~missing].square().sum(1).mean().sqrt().clamp(min=1e-12)
        self.register_buffer("values", values.masked_fill(missing[:, None], 0.0), persistent=False)
        self.register_buffer("there", ~missing, persistent=False)

    @property
    def width(self) -> int:
        """F."""
        return self.values.shape[1]


class Modalities(nn.Module):
    """Several tables by name."""

    def __init__(self, features: Mapping[str, Tensor], wanted: Sequence[str] | None, centred: bool = False) -> None:
        """The tables of these names, all where none are named; a UserError where there are none, or not one of them."""
        super().__init__()
        if not features:
            raise UserError(
                "This model needs features of the items, and the data have none: choose a source that has some, such as "
                "mmrec, or name a table in data.features (docs/data-sets.md)."
            )
        for name in wanted or ():
            if name not in features:
                known = ", ".join(features)
                raise UserError(f"There are no features {name!r}{closest(name, list(features))}: there are {known}.")
        self.by_name = nn.ModuleDict({name: Modality(features[name], centred) for name in wanted or features})

    @property
    def names(self) -> list[str]:
        """In their order."""
        return list(self.by_name)

    def __getitem__(self, name: str) -> Modality:
        table = self.by_name[name]
        assert isinstance(table, Modality)
        return table

    def each(self) -> list[tuple[str, Modality]]:
        """Names with their tables."""
        return [(name, self[name]) for name in self.names]


def shares(weights: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """What each modality counts, together 1: [M]; all the same where nothing is said."""
    strange = [name for name in weights if name not in names]
    if strange or (weights and len(weights) < len(names)):
        raise UserError(f"modality_weights must name {', '.join(names)}, each once: got {', '.join(weights)}.")
    stated = torch.tensor([weights.get(name, 1.0) for name in names], dtype=torch.float64)
    return (stated / stated.sum()).float()
