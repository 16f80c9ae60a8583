"""Lines that hold lists as rows, one for each entry."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from turborec.data.chunks import Run
from turborec.data.schema import ENTRY, LINE, LIST, PLACE, Listed

if TYPE_CHECKING:
    import pyarrow as pa


def entries(lines: Iterator[Run], layout: Listed, wanted: Sequence[str], seen: set[int]) -> Iterator[Run]:
    """The entries of all lists, in the order of the lines and of the lists in them; what is wrong with lines stays as it is."""
    for run in lines:
        yield _expanded(run if layout.first is None else _first_lines(run, layout.first), layout, wanted, seen)
        if layout.first is not None and run.table.num_rows and run.table.column(LINE)[-1].as_py() >= layout.first:
            return


def _first_lines(run: Run, most: int) -> Run:
    import pyarrow.compute as pc

    faults = [fault for fault in run.faults if fault.line <= most]
    return Run(run.table.filter(pc.less_equal(run.table.column(LINE), most)), faults, run.blank, run.bytes)


def _expanded(run: Run, layout: Listed, wanted: Sequence[str], seen: set[int]) -> Run:
    import pyarrow as pa
    import pyarrow.compute as pc

    table, parts = run.table, []
    for name in layout.lists:
        texts = table.column(name).combine_chunks()
        if layout.once and name == layout.once[0]:
            texts = pc.if_else(pa.array(_first(table, layout.once, seen), pa.bool_()), texts, "")
        # An entry between two separators, or at an end, that holds nothing is none.
        found = pc.split_pattern(texts, layout.separator)
        line, entry = pc.list_parent_indices(found), pc.list_flatten(found)
        real = pc.and_kleene(pc.is_valid(entry), pc.not_equal(entry, ""))
        line, entry = np.asarray(line.filter(real)), entry.filter(real)
        begins = np.flatnonzero(np.diff(line, prepend=-1))
        place = np.arange(len(line)) - np.repeat(begins, np.diff(np.append(begins, len(line))))
        parts.append((line, entry, place, name))
    order = np.argsort(np.concatenate([line for line, *_ in parts]), kind="stable")
    lines = pa.array(np.concatenate([line for line, *_ in parts])[order])
    made = {
        LIST: pa.concat_arrays([pa.repeat(pa.scalar(name, pa.large_string()), len(line)) for line, *_, name in parts]),
        ENTRY: pa.concat_arrays([entry for _, entry, *_ in parts]),
        PLACE: pa.array(np.concatenate([place for *_, place, _ in parts])).cast(pa.large_string()),
    }
    columns = {LINE: table.column(LINE).combine_chunks().take(lines)}
    for name in wanted:
        column = made[name].take(pa.array(order)) if name in made else table.column(name).combine_chunks().take(lines)
        columns[name] = column
    return Run(pa.table(columns), run.faults, run.blank, run.bytes)


def _first(table: "pa.Table", names: Sequence[str], seen: set[int]) -> list[bool]:
    """Whether nothing like it stood in these columns of a line before."""
    found = []
    for texts in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        known = hash(texts)
        found.append(known not in seen)
        seen.add(known)
    return found
