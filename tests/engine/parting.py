"""Pairs of processes that train a few steps and part, again and again, for test_world.py: `python parting.py STORE PAIRS`."""

import os
import socket
import sys
from pathlib import Path

import torch

from turborec import recipes
from turborec.assembly import assemble
from turborec.data.loader import TrainingBatches
from turborec.data.store import open_store
from turborec.engine import loop, world

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32},
}


def train(store, rank: int, port: int) -> None:
    """Be one of a pair; what it has made is still there when it parts."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with world.joined():
        assembly = assemble(recipes.from_tree(TREE, "the test"), store, "cpu")
        stage = assembly.recipe.stages[0]
        state = loop.start(assembly.model, stage, assembly.device)
        plan = TrainingBatches(store, assembly.recipe.batches, 1, (world.rank(), world.size()))
        for number, _ in enumerate(loop.fit(state, plan.epoch(0), stage, assembly.device)):
            world.greatest([1.0])
            if number == 3:
                break
        world.gathered(world.told("parting"))


def main() -> None:
    """Fork the pairs: they need not import torch each."""
    torch.set_num_threads(1)
    store = open_store(Path(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        pair = []
        for rank in range(2):
            if not (child := os.fork()):
                train(store, rank, port)
                sys.exit()
            pair.append(child)
        if any(os.waitpid(child, 0)[1] for child in pair):
            sys.exit("A process did not end well.")


if __name__ == "__main__":
    main()
