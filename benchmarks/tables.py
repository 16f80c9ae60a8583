"""Write RESULTS.md and the README's table from the committed rows: python benchmarks/tables.py [--check]."""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from drift_tables import drift_section
from rows import Row, read_all
from size_tables import size_section
from speed_tables import speed_sections, summary
from study_tables import study_section
from text_tables import text_section

ROOT = Path(__file__).parent.parent
SPEED_BEGIN, SPEED_END = "<!-- speed: written by benchmarks/tables.py -->", "<!-- end of speed -->"
BEGIN, END = "<!-- results: written by benchmarks/tables.py -->", "<!-- end of results -->"
SHOWN = ("hr@10", "ndcg@10", "mrr", "catalogue_auc")


def quality_table(rows: list[Row]) -> list[str]:
    """One line for each data set, model, variant and history: mean, and deviation over the seeds."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "quality":
            groups[row["data"], row["model"], row["variant"], row["protocol"]["history"]].append(row)
    lines = [f"| data | model | variant | history | seeds | {' | '.join(SHOWN)} |", "|---" * (5 + len(SHOWN)) + "|"]
    for (data, model, variant, history), members in sorted(groups.items()):
        # An anchor is counted, not trained: every run of the same data finds the same numbers, so one of them is told.
        seeds = sorted({m["seed"] for m in members}) if model not in ("popularity", "markov") else [members[0]["seed"]]
        chosen = members if model not in ("popularity", "markov") else members[:1]
        cells = [_cell([m["values"][name] for m in chosen]) for name in SHOWN]
        told = str(len(seeds)) if model not in ("popularity", "markov") else "–"
        lines.append(f"| {data} | {model} | {variant} | {history} | {told} | {' | '.join(cells)} |")
    return lines


def ablation_table(rows: list[Row]) -> list[str]:
    """One line for each variant of a recipe, or other recipe, and history: its values, and their difference to the recipe's."""
    chosen = [row for row in rows if row["kind"] == "ablation"]
    if not chosen:
        return []
    lines: list[str] = []
    for metrics in sorted({_metrics(row) for row in chosen}):
        head = ["data", "split", "recipe", "variant", "history", "seeds", *metrics, f"{metrics[-1]} less the recipe's"]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        same = [row for row in chosen if _metrics(row) == metrics]
        for row in sorted(same, key=lambda r: (r["data"], _split(r), r["model"], r["protocol"]["history"])):
            values, card, name = row["values"], row["protocol"], f"{metrics[-1]}_difference"
            low, high = row["intervals"].get(name, (0.0, 0.0))
            beside = f"{values[name]:+.4f} ({low:+.4f} to {high:+.4f})" if name in values else ""
            cells = " | ".join([*(f"{values[metric]:.4f}" for metric in metrics), beside])
            names = [row["data"], _split(row), row["model"], row["variant"], card["history"], str(card["seeds"])]
            lines.append(f"| {' | '.join(names)} | {cells} |")
    return [
        "",
        "### Comparisons, user by user",
        "",
        "A recipe, the same without a part of it, and others on the same users, values of the seeds averaged user by user;",
        "intervals of 95 % by the bootstrap over users. Gaps shuffled: each user's gaps between events dealt anew among that",
        "user's events, in training and in test.",
        *lines,
    ]


def _split(row: Row) -> str:
    """How the data of a row are split, and what is masked where that is MMRec's rule."""
    card = row["protocol"]
    told = [str(card["split"]["kind"])]
    told += ["training masked"] * ("training part alone" in card.get("masks", ""))
    told += ["among new items"] * ("no event of" in card["candidates"])
    return ", ".join(told)


def _metrics(row: Row) -> tuple[str, ...]:
    """What a row of an ablation has values of."""
    return tuple(name for name in row["values"] if not name.endswith("_difference"))


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def results_page(rows: list[Row]) -> str:
    """RESULTS.md."""
    commits = sorted({row["provenance"]["commit"][:10] for row in rows if row["provenance"].get("commit")})
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `python benchmarks/tables.py` from `benchmarks/results/`; every row there carries its protocol card",
            "and its provenance (command, commit, versions, hardware, date). A row that nobody measured is not here.",
            "`make reproduce ROW=<file>` runs a row's command again; files that are not downloaded are looked for below",
            "`$TURBOREC_DATA`.",
            "",
            "## Quality",
            "",
            "Test split, opened once; the epoch chosen on validation; the whole catalogue ranked; ties at mid-rank. `masked`:",
            "items of the user's history are no candidates; `kept`: they are. Mean ± standard deviation over seeds.",
            "",
            *quality_table(rows),
            *ablation_table(rows),
            "",
            "## Speed",
            "",
            "Ratios are medians over rounds in which the contestants take turns, of targets a processor second, with",
            "intervals of at least 95 % from six rounds; greater is better for turborec. A target is a prediction that enters",
            "the loss. A lever without an effect, or one that did not keep its promise, has no gain. Useful work is the",
            "arithmetic a step cannot do without, as a share of the best matrix product of the same type in the same run:",
            "of bfloat16 where products ran in it, half of float32's on processors that are not fast at it. The time to",
            "a peer's quality is of one run of one seed. Every row's file has the load of the machine when it began.",
            *speed_sections(rows),
            *size_section(rows),
            *study_section(rows),
            *text_section(rows),
            *drift_section(rows),
            "",
            f"Commits measured: {', '.join(commits) or 'none'}.",
            "",
        ]
    )


def readme_with(rows: list[Row], readme: str) -> str:
    """The README with its tables renewed."""
    masked = [row for row in rows if row["kind"] == "quality" and row["protocol"]["history"] == "masked"]
    readme = _between(readme, BEGIN, END, quality_table(masked))
    return _between(readme, SPEED_BEGIN, SPEED_END, summary(rows))


def _between(text: str, begin: str, end: str, lines: list[str]) -> str:
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}"


def main() -> None:
    """Write both pages, or with --check fail if they differ from what the rows say."""
    rows = read_all()
    pages = {ROOT / "benchmarks" / "RESULTS.md": results_page(rows)}
    readme = ROOT / "README.md"
    pages[readme] = readme_with(rows, readme.read_text(encoding="utf-8"))
    for path, text in pages.items():
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} is not what the rows say: run python benchmarks/tables.py")
        else:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
