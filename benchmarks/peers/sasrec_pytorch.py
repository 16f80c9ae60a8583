"""Measure SASRec.pytorch beside turborec and plain PyTorch: python benchmarks/peers/sasrec_pytorch.py RECIPE --checkout DIR

github.com/pmixer/SASRec.pytorch is no package: DIR is a checkout of it. All are in its shape: 200 events, width 50, two blocks
of one head, feed-forward layers as wide as the model, 128 users a batch, each shown once, binary cross-entropy with one
negative for each target. Its batches come from processes of their own; here they are drawn before the clock starts, for it and
for plain PyTorch, which is turborec's opponent in `bench` with that loss: so this also says whether that opponent is a fair
one. turborec has its own batches, made within its time, and a sampled softmax with 256 negatives.
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from measured import arguments, chosen_by, command, prepared
from rows import write
from turborec.assembly import assemble
from turborec.bench import eager, step
from turborec.bench.step import Contestant, Work
from turborec.data.store import Store
from turborec.engine import hardware, log
from turborec.recipe import Tree, override
from turborec.recipes import AnyRecipe, from_tree

USERS, BATCHES = 128, 16
SHAPE = (
    "batches.max_length=200",
    "model.width=50",
    "model.hidden=50",
    "model.layers=2",
    "model.heads=1",
    "model.dropout=0.2",
    "model.loss={kind: sampled_softmax, negatives: 256}",
    "train.precision=float32",
)
CPU = torch.device("cpu")


def drawn(store: Store, length: int) -> list[tuple[Any, Any, Any]]:
    """Batches as SASRec.pytorch makes them: (events, the event after each, another item), padded on the left [B, L]."""
    generator, batches = np.random.default_rng(1), []
    users = generator.permutation(store.users_of("train"))
    starts, ends = store.span("train", users)
    for first in range(0, USERS * BATCHES, USERS):
        events, following, others = (np.zeros((USERS, length), np.int32) for _ in range(3))
        for row, (start, end) in enumerate(zip(starts[first : first + USERS], ends[first : first + USERS], strict=True)):
            history = np.asarray(store.histories.items[start:end])
            shown = history[:-1][-length:]
            events[row, length - len(shown) :] = shown
            following[row, length - len(shown) :] = history[1:][-length:]
            strangers = np.setdiff1d(np.arange(1, store.num_items + 1), history)
            others[row, length - len(shown) :] = generator.choice(strangers, len(shown))
        batches.append((events, following, others))
    return batches


def theirs(checkout: Path, store: Store, recipe: AnyRecipe, batches: list[Any]) -> Iterator[Work]:
    """The steps of its main.py, by its model."""
    spec = importlib.util.spec_from_file_location("sasrec_pytorch_model", checkout / "python" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = Namespace(
        device="cpu", hidden_units=50, num_blocks=2, num_heads=1, dropout_rate=0.2, norm_first=False, maxlen=200
    )
    model = module.SASRec(store.num_users, store.num_items, settings).train()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.xavier_normal_(parameter.data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    while True:
        for events, following, others in batches:
            wanted, other = model(None, events, following, others)
            yield _step(optimizer, wanted, other, torch.from_numpy(following != 0))


def plain(store: Store, recipe: AnyRecipe, batches: list[Any]) -> Iterator[Work]:
    """Plain PyTorch with this loss on these batches."""
    model = eager.Network(recipe.model, store.num_items, recipe.batches.max_length).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while True:
        for arrays in batches:
            events, following, others = (torch.from_numpy(one).long() for one in arrays)
            states = model(events, torch.zeros_like(events, dtype=torch.bool))
            wanted, other = ((states * model.items(items)).sum(-1) for items in (following, others))
            yield _step(optimizer, wanted, other, following > 0)


def _step(optimizer: torch.optim.Optimizer, wanted: torch.Tensor, other: torch.Tensor, real: torch.Tensor) -> Work:
    """Binary cross-entropy of the real positions, and one step."""
    wanted, other = wanted[real], other[real]
    optimizer.zero_grad()
    loss = F.binary_cross_entropy_with_logits(wanted, torch.ones_like(wanted))
    loss = loss + F.binary_cross_entropy_with_logits(other, torch.zeros_like(other))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss.item()
    return Work(1, len(wanted), len(wanted), real.numel())


def main() -> None:
    """Measure and write."""
    parser = arguments(main.__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    chosen = chosen_by(parser)
    hardware.keep_freed_memory()
    busy, environment = hardware.busy(), log.environment()
    told, store = prepared(chosen)
    tree: Tree = told.model_dump(mode="json")
    recipe = from_tree(override(tree, SHAPE), "The recipe in SASRec.pytorch's shape")
    batches = drawn(store, recipe.batches.max_length)
    contestants = [
        Contestant("turborec", step.training(assemble(recipe, store, "cpu")), CPU),
        Contestant("sasrec.pytorch", theirs(chosen.checkout, store, recipe, batches), CPU),
        Contestant("plain", plain(store, recipe, batches), CPU),
    ]
    ours, peer, usual = step.compete(contestants, chosen.rounds, chosen.seconds)
    medians = {
        "targets_per_cpu_second": step.median(ours.per_second("targets", "cpu")),
        "targets_per_second_sampled_vs_sasrec_pytorch": step.ratio(ours, peer),
        "eager_vs_sasrec_pytorch": step.ratio(usual, peer),
    }
    environment["command"] = command("peers/sasrec_pytorch.py").replace(str(chosen.checkout), "SASRec.pytorch")
    row = {
        "kind": "speed",
        "data": chosen.recipe.split("/")[0],
        "model": "sasrec-pytorch",
        "recipe": chosen.recipe,
        "variant": "SASRec.pytorch's shape",
        "seed": recipe.seed,
        "protocol": {
            "work": "whole optimizer steps; batches of SASRec.pytorch and plain PyTorch are drawn before the clock starts",
            "shape": list(SHAPE),
            "precision": "float32",
            "threads": chosen.threads,
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "busy": busy,
        },
        "values": {name: median.value for name, median in medians.items()},
        "intervals": {name: [median.low, median.high] for name, median in medians.items()},
        "provenance": environment,
    }
    print(write(f"speed/{row['data']}-sasrec-pytorch", [row]))


if __name__ == "__main__":
    main()
