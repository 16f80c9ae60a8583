"""`python -m turborec.bench RECIPE [A.B=VALUE]... --store STORE`: measure where only the training floor is installed."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from turborec import recipes
from turborec.bench import budget, levers, matrix, promise, scaling
from turborec.data.store import open_store
from turborec.engine import world
from turborec.errors import UserError


def main() -> None:
    """Print the measurements of a recipe on a prepared store as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m turborec.bench", description=main.__doc__)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a shipped recipe's name, or a file")
    parser.add_argument("overrides", nargs="*", metavar="A.B=VALUE", help="change values of the recipe")
    parser.add_argument("--store", type=Path, required=True, help="a prepared store")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--levers", default="", help=f"comma-separated: {', '.join(one.name for one in levers.LEVERS)}; or all")
    parser.add_argument("--against", default="", help=f"comma-separated: {', '.join(matrix.EAGER)}")
    parser.add_argument("--eight", action="store_true", help="also the eight configurations of a study")
    parser.add_argument("--rounds", type=int, default=matrix.Plan.rounds, help="turns of each contestant (%(default)s)")
    parser.add_argument("--seconds", type=float, default=matrix.Plan.seconds, help="length of a turn (%(default)s)")
    parser.add_argument(
        "--gate", type=int, default=0, help="epochs after which levers that change the mathematics are compared"
    )
    parser.add_argument("--seeds", type=int, default=promise.Gate.seeds, help="of each such comparison (%(default)s)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scaling-of", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        store = open_store(chosen.store)
        if chosen.peak_of:
            recipe = recipes.from_tree(json.loads(sys.stdin.read()), "The recipe")
            print(json.dumps({"peak_mib": matrix.peak(chosen.peak_of, recipe, store, chosen.device)}))
            return
        if chosen.trial:
            recipe = recipes.from_tree(json.loads(sys.stdin.read()), "The recipe")
            print(json.dumps({"peak": budget.trial(recipe, store, chosen.device)}))
            return
        if chosen.scaling_of:
            recipe = recipes.from_tree(json.loads(chosen.scaling_of.read_text(encoding="utf-8")), "The recipe")
            with world.joined():
                sample = scaling.work(recipe, store, chosen.device, chosen.seconds)
                if world.leads():
                    print(json.dumps(asdict(sample)))
            return
        if chosen.recipe is None or "=" in chosen.recipe:
            parser.error("a recipe is needed")
        if chosen.rounds < 1 or not chosen.seconds >= 0 or chosen.gate < 0 or chosen.seeds < 1:
            parser.error("rounds and seeds must be at least 1, seconds and gate at least 0")
        recipe = recipes.load(chosen.recipe, chosen.overrides)
        levers_, against = matrix.named(chosen.levers, recipe), matrix.opponents(chosen.against)
        gate = promise.Gate(chosen.gate, chosen.seeds)
        plan = matrix.Plan(levers_, against, chosen.rounds, chosen.seconds, gate=gate, eight=chosen.eight)
        found = matrix.run(recipe, store, plan, chosen.device)
        print(json.dumps({"recipe": chosen.recipe, **found}))
    except UserError as error:
        print(f"turborec: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
