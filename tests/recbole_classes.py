"""Which of RecBole's general and sequential classes take a step and rank; it runs in RecBole's environment.

`python recbole_classes.py DATA`: prints {class: "runs" | why not} as JSON.
"""

import json
import pkgutil
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path

import torch

from turborec.engine import loop
from turborec.errors import UserError
from turborec.recbole.job import Job, checked
from turborec.recbole.model import stage_of
from turborec.recbole.shims import FAMILIES
from turborec.recbole.training import assembled

SHARED = ("train_batch_size=64", "eval_batch_size=64", "load_col={inter: [user_id, item_id, timestamp]}")


def tried(name: str, settings: tuple[str, ...]) -> str:
    job = Job(model=name, dataset="small", data=sys.argv[1], settings=settings, device="cpu")
    try:
        with assembled(checked(job)) as run:
            stage, device = stage_of(run.config), run.config["device"]
            state = loop.start(run.model, stage, device)
            for _ in islice(loop.fit(state, run.train.epoch(0), stage, device), 1):
                pass
            run.measured("test")
        return "runs"
    except UserError as error:
        return str(error)


def main() -> None:
    """Try all of them."""
    torch.set_num_threads(1)
    root, found = Path(str(import_module("recbole.model").__path__[0])), {}
    out, sys.stdout = sys.stdout, sys.stderr  # some of them print what they think
    for name in (module.name for family in FAMILIES for module in pkgutil.iter_modules([str(root / family)])):
        found[name] = tried(name, SHARED)
        if "train_neg_sample_args" in found[name]:
            found[name] = tried(name, (*SHARED, "train_neg_sample_args=~"))
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    main()
