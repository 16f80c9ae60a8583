"""What the scripts that measure speed share: a recipe by its name, and its store, prepared where it is not there yet."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from turborec import recipes, stores
from turborec.cli._options import DEFAULT_HOME
from turborec.data.store import Store
from turborec.engine import hardware, log
from turborec.errors import UserError
from turborec.recipes import AnyRecipe
from turborec.stores import Places


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows a recipe, changes to it and a store."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", help="a shipped recipe; raw files are looked for below $TURBOREC_DATA")
    parser.add_argument("overrides", nargs="*", metavar="A.B=VALUE")
    parser.add_argument("--store", type=Path, help="use this prepared store as it is")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def chosen_by(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's choices; this process, and those it starts, compute with the threads it names."""
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    torch.set_num_threads(chosen.threads)
    return chosen


def prepared(chosen: argparse.Namespace) -> tuple[AnyRecipe, Store]:
    """The recipe, and its store below $TURBOREC_HOME."""
    recipe = recipes.load(chosen.recipe, chosen.overrides)
    home = Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME))
    return recipe, stores.of_recipe(recipe, Places(home, None, chosen.store))


def surroundings(parser: argparse.ArgumentParser) -> tuple[str | None, dict[str, Any]]:
    """Whether the machine is busy as a script begins, and the provenance of what it measures."""
    return hardware.busy(), log.environment() | {"command": command(parser.prog)}


def told(main: Callable[[], None]) -> None:
    """Run a script's `main`; a mistake of the user's is one paragraph."""
    try:
        main()
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def command(script: str) -> str:
    """This process's command, without the place of a store on this machine."""
    words = sys.argv[1:]
    if "--store" in words:
        at = words.index("--store")
        words[at : at + 2] = []
    return shlex.join(["python", f"benchmarks/{script}", *words])
