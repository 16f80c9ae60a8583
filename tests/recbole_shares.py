"""One of the processes of a training of RecBole's models, for test_recbole_runs.py; it runs in RecBole's environment.

`python -m torch.distributed.run --nproc-per-node N recbole_shares.py DATA OUT`: the leader writes OUT.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from turborec.engine import loop, world
from turborec.recbole.job import Job, checked
from turborec.recbole.model import stage_of
from turborec.recbole.training import assembled, refuse_coupled

STEPS = 12

CASES = {
    "SASRec": ("train_neg_sample_args=~",),
    "BERT4Rec": ("train_neg_sample_args=~",),
    "GRU4Rec": ("train_neg_sample_args=~",),
    "LightGCN": ("reg_weight=0.1", "topk=[5]", "valid_metric=MRR@5"),
    "BPR": ("train_neg_sample_args={distribution: uniform, sample_num: 3}",),
    "NeuMF": (),
}
SHARED = ("train_batch_size=63", "eval_batch_size=64", "load_col={inter: [user_id, item_id, timestamp]}")


def found(job: Job) -> dict[str, torch.Tensor]:
    """Everything that must not depend on the number of processes."""
    with assembled(checked(job)) as run:
        first: dict[str, torch.Tensor] = {}

        def remember(*_: object) -> None:
            if not first:
                first.update({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})

        stage = stage_of(run.config)
        if world.size() > 1:
            refuse_coupled(run)
        untrained = run.measured("test").ranks["kept"].values
        state = loop.start(run.model, stage, run.config["device"])
        state.optimizer.register_step_pre_hook(remember)
        losses, number = [], 0
        while len(losses) < STEPS:
            losses += [record.loss for record in loop.fit(state, run.train.epoch(number), stage, run.config["device"])]
            number, state.position.step = number + 1, 0
        return {
            **{f"gradient/{name}": value for name, value in first.items()},
            **{f"weights/{name}": value.clone() for name, value in run.model.state_dict().items()},
            "losses": torch.tensor(losses[:STEPS], dtype=torch.float64),
            "ranks": torch.from_numpy(untrained),
        }


def main() -> None:
    """Go through all cases."""
    torch.set_num_threads(1)
    with world.joined():
        everything = {}
        for model, settings in CASES.items():
            job = Job(model=model, dataset="small", data=sys.argv[1], settings=(*SHARED, *settings), device="cpu")
            everything.update({f"{model}/{key}": value for key, value in found(job).items()})
        if world.leads():
            save_file(everything, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
