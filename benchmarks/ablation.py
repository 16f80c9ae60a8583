"""Train a recipe without its parts and without its times, and commit the rows: python benchmarks/ablation.py RECIPE --out RUNS.

Rows go to results/quality and, paired with the whole model user by user, to results/paired/<data>-<model>-ablation.json.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from measured import arguments, chosen_by, prepared, told
from paired import paired_rows
from rows import quality_rows, write
from turborec import recipes, run, stores
from turborec.cli._options import DEFAULT_HOME
from turborec.data.store import Store, open_store, seal_of, sha256

VARIANTS = {
    "default": [],
    "S5 alone": ["model.mixers=[s5]"],
    "Mamba alone": ["model.mixers=[mamba]"],
    "times ignored": ["model.intervals={kind: none}"],
    "gaps shuffled": [],
}
SHUFFLED = "gaps shuffled"


def shuffled(store: Store, folder: Path) -> Store:
    """The store with each user's gaps dealt anew among that user's events: the same gaps, which mean nothing any more."""
    if folder.exists():
        return open_store(folder)
    shutil.copytree(store.folder, folder)
    generator = np.random.default_rng(0)
    times = np.array(store.histories.times)
    for begin, end in zip(store.histories.offsets[:-1].tolist(), store.histories.offsets[1:].tolist(), strict=True):
        gaps = np.diff(times[begin:end])
        times[begin + 1 : end] = times[begin] + np.cumsum(generator.permutation(gaps))
    np.save(folder / "times.npy", times)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card.pop("seal", None)
    path = folder / "times.npy"
    card["files"]["times.npy"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    card["key"] = hashlib.sha256(f"{store.key} {SHUFFLED}".encode()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card | {"seal": seal_of(card)}, indent=1), encoding="utf-8")
    return open_store(folder)


def main() -> None:
    """Train and write."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs; those that are there stay")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = chosen_by(parser)
    _, store = prepared(chosen)
    home = Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME))
    runs: dict[str, list[Path]] = {}
    for variant, changes in VARIANTS.items():
        used = shuffled(store, chosen.out / "shuffled") if variant == SHUFFLED else store
        for seed in range(1, chosen.seeds + 1):
            folder = chosen.out / f"{variant.replace(' ', '-')}-{seed}"
            recipe = recipes.load(chosen.recipe, [*chosen.overrides, *changes, f"seed={seed}"])
            if not run.is_finished(folder):
                run.train(recipe, folder, stores.Places(home, None, used.folder))
            runs.setdefault(variant, []).append(folder)
    each = ((variant, folder) for variant, folders in runs.items() for folder in folders)
    rows = [row for variant, folder in each for row in quality_rows(folder, chosen.recipe, variant)]
    whole = runs.pop("default")
    pairs = [row for variant, folders in runs.items() for row in paired_rows(chosen.recipe, variant, "default", whole, folders)]
    name = chosen.recipe.replace("/", "-")
    print(write(f"quality/{name}-ablation", rows))
    print(write(f"paired/{name}-ablation", pairs))


if __name__ == "__main__":
    told(main)
