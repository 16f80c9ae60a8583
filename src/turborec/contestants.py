"""Who takes part in a comparison: the results of a run's model, or of one of its anchors, user by user.

Letters: U users, P (user, target) pairs.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.data.store import Part, Store, open_store
from turborec.errors import UserError, closest
from turborec.evaluate import HISTORIES, History
from turborec.recipe import Tree, read

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

CHOICES = ("max_length", "training_windows", "model_options")
"""Entries of a protocol card that are a model's choice, not a part of the task: they may differ in one table."""

_ABSENT = object()


@dataclass(frozen=True)
class Contestant:
    """A model's results on one part, and where they come from."""

    name: str  # short, and unlike the others'
    folder: Path  # of the run
    model: str
    recipe: Tree
    card: dict[str, Any]
    users: list[str]  # [U] raw ids
    events: Int64  # [U] of the history
    offsets: Int64  # [U + 1] into the targets
    targets: list[str]  # [P] raw ids
    values: dict[History, dict[str, Float64]]  # [U] by name of the metric
    counts: dict[str, Float64] = field(default_factory=dict)  # [U] of metrics that are means over something else than users
    commit: str | None = None  # of the code that trained it, where that is known
    members: tuple["Contestant", ...] = ()  # the runs of other seeds that it is the average of

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.recipe["seed"])

    def count_of(self, metric: str) -> Float64:
        """Of how many each user's value is the mean: [U], of impressions where these are what the metric averages, else 1."""
        return self.counts.get(metric, np.ones(len(self.users)))

    def mean(self, history: History, metric: str, rows: Int64 | slice = slice(None)) -> float:
        """The value of all users, or of those in `rows`."""
        return float(np.average(self.values[history][metric][rows], weights=self.count_of(metric)[rows]))


def read_all(names: Sequence[str], part: Part, store: Path | None = None, history: History | None = None) -> list[Contestant]:
    """The contestants called `names` (RUN, or RUN/MODEL for an anchor), users in the order of the first.

    Where `history` says which values are compared, it does not matter which ones count in a run, as all hold both.
    A UserError where results are missing, stand under different protocol cards, or are about different users.
    """
    found = [_read(*_locate(name, part), part, store) for name in names]
    places = [(one.folder, one.model) for one in found]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"Each contestant is named once, and {' and '.join(twice)} are the same results.")
    found = [replace(one, name=name) for one, name in zip(found, _short([_parts(one) for one in found]), strict=True)]
    for other in found[1:]:
        _require_same_card(found[0], other, CHOICES if history is None else (*CHOICES, "history"))
    return [found[0], *(_aligned(found[0], other) for other in found[1:])]


def merge_seeds(contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[str]]:
    """Runs of one recipe but for the seed as one contestant, each user's values averaged; and what was done, in words.

    Where that would leave nothing to compare, each run stays a contestant of its own.
    """
    groups: dict[str, list[Contestant]] = {}
    for one in contestants:
        groups.setdefault(json.dumps([one.model, {**one.recipe, "seed": None}], sort_keys=True), []).append(one)
    if len(groups) == 1:
        same = "All runs are of one recipe and differ in nothing but the seed: each is a contestant of its own."
        return list(contestants), [same] if len({one.seed for one in contestants}) > 1 else []
    merged, remarks = [], []
    for members in groups.values():
        first = members[0]
        if len({one.seed for one in members}) < len(members):
            merged += members  # two runs of one seed are not two seeds
            continue
        if len(members) > 1:
            named = ", ".join(f"{one.name} (seed {one.seed})" for one in members)
            remarks.append(f"{named} are one recipe: each user's values are averaged over them, and they are one contestant.")
            name = f"{first.name} ({len(members)} seeds)"
            first = replace(first, name=name, values=_averaged(members), members=tuple(members))
        merged.append(first)
    return merged, remarks


def differing_choices(contestants: Sequence[Contestant]) -> list[str]:
    """The choices in which contestants differ, in words, and the code that trained them where it is not the same."""
    remarks = []
    commits = {one.name: one.commit for one in contestants if one.commit}
    if len(set(commits.values())) > 1:
        listed = ", ".join(f"{commit} for {name}" for name, commit in commits.items())
        remarks.append(f"The runs were made by different versions of the code: commit {listed}.")
    for choice in CHOICES:
        stated = {one.name: one.card.get(choice) for one in contestants}
        parts = {name: value for name, value in stated.items() if isinstance(value, dict)}
        leaves = {name: _leaves(value) for name, value in parts.items()}
        said = [{name: leaf.get(path, _ABSENT) for name, leaf in leaves.items()} for path in _paths(leaves.values())]
        told = [f"{path} {_listed(one)}" for path, one in zip(_paths(leaves.values()), said, strict=True) if _differ(one)]
        if len(parts) < len(stated) and _differ(stated):
            told.append(_listed(stated))
        if told:
            remarks.append(f"{choice} differs: {'; '.join(told)}. That is the model's choice, not a part of the task.")
    return remarks


def _leaves(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a tree by their paths: `intervals.event`."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _leaves(part, f"{above}{name}.") if isinstance(part, dict) else {above + name: part}
    return found


def _paths(trees: Iterable[dict[str, Any]]) -> list[str]:
    """All paths, each once, in their order."""
    return list(dict.fromkeys(path for tree in trees for path in tree))


def _differ(values: dict[str, Any]) -> bool:
    """Whether what contestants say, by their names, is not the same."""
    return len({_exactly(value) for value in values.values()}) > 1


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{_plain(value)} in {name}" for name, value in values.items())


def metrics_of(contestants: Sequence[Contestant], history: History) -> list[str]:
    """The metrics for which all contestants have a value for every user."""
    return [name for name in contestants[0].values[history] if all(name in one.values[history] for one in contestants)]


def store_of(one: Contestant, given: Path | None = None) -> Store:
    """The store that the results are about, in its place or in the folder `given`; a UserError where it is not there."""
    return _store(one.folder, str(one.card["data"]["key"]), given)


def _store(folder: Path, key: str, given: Path | None) -> Store:
    place = given
    if place is None:
        try:
            place = Path(json.loads((folder / "data.json").read_text(encoding="utf-8"))["store"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder / 'data.json'} does not say where the store is. Name it with --store.") from error
    store = open_store(place)
    if store.key != key:
        raise UserError(f"{place} holds other data than the results are about (key {store.key[:16]}, not {key[:16]}).")
    return store


def _locate(name: str, part: Part) -> tuple[Path, str | None]:
    """The run folder and, for RUN/MODEL, the model."""
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        return path.resolve(), None
    if (path.parent / "recipe.yaml").is_file() and (path.parent / "data.json").is_file():
        return path.parent.resolve(), path.name
    raise UserError(f"{name} is neither a run folder (it has no recipe.yaml) nor RUN/MODEL, such as runs/mine/markov.")


def _read(folder: Path, model: str | None, part: Part, store: Path | None) -> Contestant:
    recipe = read(folder / "recipe.yaml")
    try:
        model, _ = model or str(recipe["model"]["kind"]), int(recipe["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'recipe.yaml'} is not the resolved recipe of a run: it lacks a model or a seed.") from error
    results = folder / "evaluation" / part
    try:
        result = json.loads((results / model / "result.json").read_text(encoding="utf-8"))
        card, told = dict(result["protocol"]), {h: dict(result["values"][h]) for h in HISTORIES}
        key = str(card["data"]["key"])
    except OSError as error:
        known = sorted(path.parent.name for path in results.glob("*/result.json"))
        there = f"{folder.name} has no results of {model!r} on the {part} part{closest(model, known)}."
        again = "A finished run has them; " if part == "test" else ""
        raise UserError(f"{there} {again}`turborec evaluate {folder} --part {part}` measures it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results / model / 'result.json'} cannot be read ({error}): evaluate the run again.") from error
    users, events, offsets, targets, values = _table(results / model, folder, key, store)
    own, counts = _of_impressions(results / model, [name for name in told["masked"] if name.startswith("impression_")], users)
    values = {history: values[history] | own for history in HISTORIES}
    origin = (folder.name, folder, model, recipe, card)
    found = Contestant(*origin, users, events, offsets, targets, values, counts, _commit(folder))
    _require_agreement(results / model, found, told)
    return found


def _require_agreement(place: Path, found: Contestant, told: dict[History, dict[str, Any]]) -> None:
    """Refuse values of users whose means are not those written beside them: a file was changed or damaged."""
    for history in HISTORIES:
        for name in found.values[history]:
            mean, written = found.mean(history, name), told[history].get(name)
            if written is None or not abs(mean - written) <= 1e-6 * max(1.0, abs(written)):
                raise UserError(
                    f"{place}: the {name} ({history}) of the users has the mean {mean:.6f}, and result.json says {written}. "
                    "One of the files was changed or damaged: evaluate the run again."
                )


def _commit(folder: Path) -> str | None:
    """The commit of the code that a run was trained with, and whether it had been changed since."""
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        return f"{facts['commit'][:10]}{' (changed)' * bool(facts['dirty'])}" if facts["commit"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


_Table = tuple[list[str], Int64, Int64, list[str], dict[History, dict[str, Float64]]]


def _table(place: Path, folder: Path, key: str, given: Path | None) -> _Table:
    """Users, events, offsets, targets and values from `per_user.parquet`, or from the `.npz` of a bare machine."""
    if (place / "per_user.parquet").is_file():
        return _from_parquet(place / "per_user.parquet")
    if not (place / "per_user.npz").is_file():
        raise UserError(f"{place} has no per_user.parquet: evaluate the run again with `turborec evaluate`.")
    with np.load(place / "per_user.npz", allow_pickle=False) as file:
        arrays = dict(file)
    store = _store(folder, key, given)  # which knows the raw ids of its rows
    values = {h: {n: arrays[f"{n}_{h}"] for n in _metric_names(list(arrays), h)} for h in HISTORIES}
    users, targets = store.user_ids.raw(arrays["user"]), store.item_ids.raw(arrays["target"] - 1)
    return users, arrays["history_events"], arrays["offsets"], targets, values


def _from_parquet(path: Path) -> _Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        metrics = {history: _metric_names(names, history) for history in HISTORIES}
        wanted = [f"{name}_{history}" for history in HISTORIES for name in metrics[history]]
        table = parquet.read_table(path, columns=["user", "history_events", "target", *wanted])
        targets = table["target"].combine_chunks()
        values = {h: {n: table[f"{n}_{h}"].to_numpy().astype(np.float64) for n in metrics[h]} for h in HISTORIES}
        offsets, flat = targets.offsets.to_numpy().astype(np.int64), targets.values.to_pylist()
        return table["user"].to_pylist(), table["history_events"].to_numpy(), offsets, flat, values
    except (OSError, pa.ArrowInvalid, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate the run again.") from error


def _of_impressions(place: Path, names: list[str], users: list[str]) -> tuple[dict[str, Float64], dict[str, Float64]]:
    """Each user's mean over impressions, by metric, and of how many it is one: two times [U]; 0 of 0 where there is none."""
    if not names or not (place / "per_user.parquet").is_file():  # a bare machine writes no impressions
        return {}, {}
    path = place / "per_impression.parquet"
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        row_of = {user: row for row, user in enumerate(users)}
        rows = np.asarray([row_of[user] for user in table["user"].to_pylist()], dtype=np.int64)
        columns = {name: table[name].to_numpy().astype(np.float64) for name in names}
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): evaluate the run again.") from error
    means, counts = {}, {}
    for name, values in columns.items():
        there = np.isfinite(values)
        if not there.any():
            raise UserError(f"{path} has no value of {name}, and result.json has: evaluate the run again.")
        counts[name] = np.bincount(rows[there], minlength=len(users)).astype(np.float64)
        means[name] = np.bincount(rows[there], values[there], minlength=len(users)) / np.maximum(counts[name], 1)
    return means, counts


def _metric_names(columns: Sequence[str], history: History) -> list[str]:
    suffix = f"_{history}"
    plain = (name.removesuffix(suffix) for name in columns if name.endswith(suffix))
    return [name for name in plain if name not in ("rank", "candidates")]


def _require_same_card(first: Contestant, other: Contestant, choices: tuple[str, ...]) -> None:
    """Refuse results of another task; metrics that only one has are no contradiction."""
    differences = {
        name: (a, b)
        for name, (a, b) in _differences(first.card, other.card).items()
        if name.split(".")[0] not in choices and not (name.startswith("metrics.") and _ABSENT in (a, b))
    }
    if not differences:
        return
    a_name, b_name = ("/".join(_parts(one)[len(one.folder.parts) - 1 :]) for one in (first, other))
    listed = "\n".join(f"  {name}: {_plain(a)} in {a_name}, {_plain(b)} in {b_name}" for name, (a, b) in differences.items())
    hint = " Both hold masked and kept values: --history says which to compare." if set(differences) == {"history"} else ""
    raise UserError(
        f"{a_name} and {b_name} were measured by different protocols, so their values may not stand in one table:\n"
        f"{listed}\nTrain or evaluate both on the same data, in the same way, with the same version of turborec.{hint}"
    )


def _differences(a: Any, b: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two trees: dotted path -> the two values."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*a, *b]):
            below = f"{path}.{key}" if path else str(key)
            found |= _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), below)
        return found
    return {} if a is b or a == b else {path: (a, b)}


def _exactly(value: Any) -> str:
    return "not stated" if value is _ABSENT or value is None else json.dumps(value) if isinstance(value, dict) else str(value)


def _plain(value: Any) -> str:
    text = _exactly(value)
    return text if len(text) <= 90 else f"{text[:86]} …"


def _aligned(first: Contestant, other: Contestant) -> Contestant:
    """`other` with its users in the order of the first's; a UserError where they are not the same users."""
    if other.users == first.users:
        return _shown_the_same(first, other)
    rows = {user: row for row, user in enumerate(other.users)}
    missing = [user for user in first.users if user not in rows]
    if missing or len(first.users) != len(other.users):
        beyond = len(other.users) - (len(first.users) - len(missing))
        raise UserError(
            f"{first.name} and {other.name} are about different users: {len(missing):,} of the first's are not in the second "
            f"and {beyond:,} the other way round{f', such as {missing[0]!r}' if missing else ''}. Evaluate both runs again."
        )
    order = np.asarray([rows[user] for user in first.users])
    values: dict[History, dict[str, Float64]] = {h: {n: v[order] for n, v in other.values[h].items()} for h in HISTORIES}
    counts = {name: count[order] for name, count in other.counts.items()}
    other = replace(other, users=first.users, events=first.events, offsets=first.offsets, targets=first.targets)
    return _shown_the_same(first, replace(other, values=values, counts=counts))


def _shown_the_same(first: Contestant, other: Contestant) -> Contestant:
    """`other`; a UserError where the two count other impressions."""
    for name in first.counts.keys() & other.counts.keys():
        if not np.array_equal(first.counts[name], other.counts[name]):
            raise UserError(f"{first.name} and {other.name} count different impressions in {name}. Evaluate both runs again.")
    return other


def _averaged(members: Sequence[Contestant]) -> dict[History, dict[str, Float64]]:
    return {
        history: {
            name: np.mean([one.values[history][name] for one in members], axis=0) for name in metrics_of(members, history)
        }
        for history in HISTORIES
    }


def _parts(one: Contestant) -> tuple[str, ...]:
    named = () if one.model == one.recipe["model"]["kind"] else (one.model,)
    return (*one.folder.parts, *named)


def _short(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The last parts of paths, as few as tell them apart; an anchor keeps the name of its run."""
    longest = max(len(path) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path) for path in paths]
