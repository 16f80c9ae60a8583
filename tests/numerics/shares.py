"""One of the processes of a training, for test_processes.py: what each recipe's first gradient, losses and ranks come to.

`python -m torch.distributed.run --nproc-per-node N shares.py STORE OUT`: the leader writes OUT.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from turborec import recipes
from turborec.assembly import assemble, measure
from turborec.data.loader import TrainingBatches
from turborec.data.store import open_store
from turborec.engine import loop, world
from turborec.engine.sharding import whole

STEPS = 10

SASREC = {"kind": "sasrec", "width": 16, "hidden": 32, "dropout": 0.3}
SAMPLED = {"kind": "sampled_softmax", "negatives": 20}
ROWS = {"kind": "adamw", "tables": "rows", "lr": 0.01}
CASES = {
    "sasrec": {"model": SASREC},
    "accumulated": {"model": SASREC, "train": {"accumulate": 2}},
    "static": {"model": SASREC, "train": {"exchange": {"static_graph": True, "bucket_mb": 0.01}}},
    "rows": {"model": SASREC | {"loss": SAMPLED}, "train": {"optimizer": ROWS}},
    "rows, exact": {"model": SASREC, "train": {"optimizer": ROWS}},
    "cowclip": {
        "model": SASREC | {"loss": SAMPLED},
        "train": {"optimizer": ROWS, "scaling": {"rule": "cowclip", "tokens": 96}},
    },
    "muon": {"model": SASREC, "train": {"optimizer": {"kind": "muon"}}},
    "bert4rec": {"model": {"kind": "bert4rec", "width": 16, "hidden": 32, "dropout": 0.3}},
    "gru4rec": {"model": {"kind": "gru4rec", "width": 16, "hidden": 32, "dropout": 0.3}},
    "gbce": {"model": SASREC | {"loss": {"kind": "gbce", "negatives": 20}}},
    "shared tables": {"model": SASREC, "train": {"exchange": {"shard": "tables"}}},
    "shared tables, rows": {"model": SASREC | {"loss": SAMPLED}, "train": {"optimizer": ROWS, "exchange": {"shard": "tables"}}},
    "shared tables, muon": {"model": SASREC, "train": {"optimizer": {"kind": "muon"}, "exchange": {"shard": "tables"}}},
    "shared tables, bert4rec": {
        "model": {"kind": "bert4rec", "width": 16, "hidden": 32, "dropout": 0.3, "tied": False},
        "train": {"accumulate": 2, "exchange": {"shard": "tables"}},
    },
    "shared parameters": {"model": SASREC, "train": {"accumulate": 2, "exchange": {"shard": "parameters"}}},
    "shared parameters, bert4rec": {
        "model": {"kind": "bert4rec", "width": 16, "hidden": 32, "dropout": 0.3},
        "train": {"exchange": {"shard": "parameters"}},
    },
    "shared parameters, gru4rec": {
        "model": {"kind": "gru4rec", "width": 16, "hidden": 32, "dropout": 0.3},
        "train": {"exchange": {"shard": "parameters"}},
    },
    "few rows": {"model": SASREC, "batches": {"max_length": 12, "tokens": 24}},
    "few rows, bert4rec": {
        "model": {"kind": "bert4rec", "width": 16, "hidden": 32, "dropout": 0.3},
        "batches": {"max_length": 12, "tokens": 12},
    },
}
"""`few rows`: batches of fewer rows than there are processes, some of which have none."""


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.detach()
    return gradient.to_dense() if gradient.is_sparse else gradient


def recipe_of(case: dict) -> recipes.AnyRecipe:
    tree = {"data": {"source": {"kind": "online_retail"}}, "batches": {"max_length": 12, "tokens": 192}, **case}
    tree["train"] = {"precision": "float32", "clip_norm": 1.0, "average": 0.9, **case.get("train", {})}
    return recipes.from_tree(tree, "the test")


def found(case: dict, store) -> dict[str, torch.Tensor]:
    """Everything that must not depend on the number of processes."""
    assembly = assemble(recipe_of(case), store, "cpu")
    recipe, stage = assembly.recipe, assembly.recipe.stages[0]
    plan = TrainingBatches(store, recipe.batches, recipe.seed, (world.rank(), world.size()))
    state = loop.start(assembly.model, stage, assembly.device)
    first: dict[str, torch.Tensor] = {}

    def remember(*_: object) -> None:
        if not first:
            first.update({n: whole(_dense(p.grad), p).clone() for n, p in assembly.model.named_parameters()})

    state.optimizer.register_step_pre_hook(remember)
    losses, norms, number = [], [], 0
    while len(losses) < STEPS:
        for record in loop.fit(state, plan.epoch(number), stage, assembly.device):
            losses.append(record.loss)
            norms.append(record.gradient_norm)
        number, state.position.step = number + 1, 0
    ranks = measure(assembly, "validation").ranks["masked"].values  # before training they would hardly differ
    tensors, facts = state.capture()
    state.restore(tensors, facts)
    for group, some in state.capture()[0].items():  # what each process takes back of it is what it had
        assert all(torch.equal(tensor, tensors[group][name]) for name, tensor in some.items()), group
    return {
        **{f"gradient/{name}": value for name, value in first.items()},
        **{f"checkpoint/{group}/{name}": t for group, some in tensors.items() for name, t in some.items()},
        "losses": torch.tensor(losses[:STEPS], dtype=torch.float64),
        "norms": torch.tensor(norms[:STEPS], dtype=torch.float64),
        "ranks": torch.from_numpy(ranks),
    }


def main() -> None:
    """Go through all cases."""
    torch.set_num_threads(1)
    store, out = open_store(Path(sys.argv[1])), Path(sys.argv[2])
    with world.joined():
        everything = {}
        for name, case in CASES.items():
            everything.update({f"{name}/{key}": value.clone() for key, value in found(case, store).items()})
        if world.leads():
            save_file(everything, out)


if __name__ == "__main__":
    main()
