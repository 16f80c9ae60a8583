"""Carry out the acceleration study of a recipe and commit it: python benchmarks/study.py RECIPE --runs FOLDER --name NAME.

Every variant is a row of results/study/NAME.json, the baseline the first; what became of the guide's claims is in the row of
each lever's first variant. `turborec study` does the same and writes a page; a training that is in FOLDER is not carried out
again. Raw files are looked for below $TURBOREC_DATA: benchmarks/music4all_twin.py draws some of any size.
"""

from pathlib import Path

from measured import arguments, chosen_by, command, prepared, told
from rows import Row, numbers, write
from turborec.bench import study


def main() -> None:
    """Train and write."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--levers", default="all")
    parser.add_argument("--seeds", type=int, default=1)
    chosen = chosen_by(parser)
    recipe, store = prepared(chosen)
    found = study.run(recipe, store, study.Plan(study.named(chosen.levers), seeds=chosen.seeds), chosen.runs, "cpu")
    data, model = chosen.recipe.rsplit("/", 1)
    provenance = found["provenance"] | {"command": command(parser.prog)}
    told_of = {lever["variants"][0]["name"]: lever for lever in found["levers"]}
    rows: list[Row] = [
        {
            "kind": "study",
            "data": data,
            "model": model,
            "recipe": chosen.recipe,
            "variant": row["name"],
            "seed": recipe.seed,
            "protocol": {
                "study": chosen.name,
                "overrides": [*chosen.overrides, *row["overrides"]],
                "state": row["state"],
                "why": row["why"],
                "clock": found["clock"],
                "select": found["select"],
                "plan": found["plan"],
                "data": found["data"],
                "source": found["terms"],
                "cautions": [*filter(None, [found["warning"]]), *found["cautions"]],
            },
            "lever": told_of.get(row["name"]),
            "values": numbers(row["values"]),
            "provenance": provenance,
        }
        for row in found["rows"]
    ]
    print(write(f"study/{chosen.name}", rows))


if __name__ == "__main__":
    told(main)
