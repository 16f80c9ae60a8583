"""Turn a finished run into committed benchmark rows: python benchmarks/record.py RUN RECIPE [VARIANT]."""

import sys
from pathlib import Path

from rows import quality_rows, seed_of, write


def main() -> None:
    """Write results/quality/<data>-<model>[-<variant>]-seed<seed>.json."""
    run, recipe = Path(sys.argv[1]), sys.argv[2]
    variant = sys.argv[3] if len(sys.argv) > 3 else "default"
    suffix = "" if variant == "default" else f"-{variant}"
    name = f"quality/{recipe.replace('/', '-')}{suffix}-seed{seed_of(run)}"
    print(write(name, quality_rows(run, recipe, variant)))


if __name__ == "__main__":
    main()
