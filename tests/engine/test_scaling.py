"""Rates that follow the size of the batch, and rows that are clipped by their own norm."""

import math

import pytest
import torch
from torch import nn

from stores import store_of
from turborec import recipes
from turborec.assembly import assemble
from turborec.contract import count_reads, note_reads, reads_of, rows_of
from turborec.data.loader import TrainingBatches
from turborec.engine import loop
from turborec.engine.loop import Stage
from turborec.engine.optim import AdamW, Muon
from turborec.engine.scaling import Scaling, clip_rows
from turborec.errors import UserError


def tree_of(**train):
    return {
        "data": {"source": {"kind": "online_retail"}},
        "batches": {"max_length": 8, "tokens": 4096},
        "model": {"kind": "sasrec", "width": 8, "hidden": 8, "loss": {"kind": "sampled_softmax", "negatives": 4}},
        "train": train,
    }


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.04), ("square_root", 0.02)])
@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01), Muon(lr=0.01)])
def test_the_rate_follows_the_batch(rule, rate, optimizer):
    scaled = Stage(optimizer=optimizer, scaling=Scaling(rule=rule, tokens=1024)).at(4096)
    assert scaled.optimizer.lr == pytest.approx(rate)
    assert scaled.at(10**9) == scaled  # once applied it is done


def test_a_rate_of_the_tables_follows_too_but_by_cowclip():
    apart = AdamW(lr=0.01, tables="rows", tables_lr=0.005, tables_weight_decay=0.3, clip_rows=0.5)
    linear = Scaling(rule="linear", tokens=1024).applied(apart, 4096)
    assert (linear.lr, linear.tables_lr, linear.tables_weight_decay) == pytest.approx((0.04, 0.02, 0.3))
    cowclip = Scaling(rule="cowclip", tokens=1024).applied(apart, 4096)
    assert (cowclip.lr, cowclip.tables_lr, cowclip.tables_weight_decay) == pytest.approx((0.02, 0.005, 1.2))
    assert cowclip.clip_rows == 0.5


def test_what_would_change_nothing_is_refused():
    with pytest.raises(ValueError, match="tokens without a rule changes nothing"):
        Scaling(tokens=1024)
    table = nn.Parameter(torch.ones(3, 2))
    count_reads(table)
    table.grad = torch.ones(3, 2)
    with pytest.raises(UserError, match="need a sampled loss"):
        clip_rows([table], 1.0)


def test_cowclip_leaves_the_tables_rate_alone():
    stage = Stage(optimizer=AdamW(lr=0.01, weight_decay=0.1, tables="rows"), scaling=Scaling(rule="cowclip", tokens=1024))
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "body": nn.Linear(4, 4)})
    groups = loop.start(model, stage.at(16384), torch.device("cpu")).optimizer.param_groups
    tables = next(group for group in groups if group["params"][0] is model["table"].weight)
    body = next(group for group in groups if group["params"][0] is model["body"].weight)
    assert (body["initial_lr"], body["weight_decay"]) == (pytest.approx(0.04), 0.1)
    assert (tables["initial_lr"], tables["weight_decay"], tables["clip_rows"]) == (0.01, pytest.approx(1.6), 1.0)


def test_rows_are_clipped_by_their_norm_and_their_reads():
    table = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [1.0, 0.0]]))
    rows, values = torch.tensor([1, 2, 2, 3]), torch.tensor([[30.0, 40.0], [30.0, 40.0], [30.0, 40.0], [3.0, 4.0]])
    count_reads(table)
    note_reads(table, rows)
    table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
    clip_rows([table], ratio=0.5)
    norms = table.grad.to_dense().norm(dim=1)
    assert norms.tolist() == pytest.approx([0.0, 0.5 * 5, 2 * 0.5 * 0.5, 1e-5, 0.0])
    small = table.grad.to_dense()
    note_reads(table, rows)
    clip_rows([table], ratio=100.0)
    assert torch.equal(table.grad.to_dense(), small)


def test_every_read_counts_whatever_the_gradients_are_added_to():
    """A tied table is read as input, as target and as negative; adding sparse gradients merges some of their rows."""
    model = nn.ModuleDict({"table": nn.Embedding(9, 4)})
    AdamW(tables="rows", clip_rows=1.0).build(model)
    table, ids = model["table"].weight, [torch.tensor([[1, 2, 3], [4, 5, 5]]), torch.tensor([2, 3, 4]), torch.tensor([3, 3])]
    (model["table"](ids[0]).sum() + rows_of(table, ids[1]).sum() + rows_of(table, ids[2]).sum()).backward()
    with torch.no_grad():
        rows_of(table, torch.tensor([8]))
    assert reads_of(table, shared=False).tolist() == torch.bincount(torch.cat([i.flatten() for i in ids]), minlength=9).tolist()
    assert reads_of(table, shared=False).sum() == 0


def test_training_takes_the_scaled_rates(tmp_path):
    """The loop's rates are the rule's at each step, for the body and for the tables, and the weights stay finite."""
    walks = [[1 + (start + step) % 20 for step in range(10)] for start in range(60)]
    store = store_of(tmp_path / "store", walks, items=20)
    optimizer = {"kind": "adamw", "lr": 0.01, "tables": "rows"}
    recipe = recipes.from_tree(
        tree_of(optimizer=optimizer, scaling={"rule": "cowclip", "tokens": 1024}, schedule={"kind": "linear"}), "the test"
    )
    assembly, stage = assemble(recipe, store), recipe.stages[0]
    state = loop.start(assembly.model, stage, assembly.device)
    epoch = TrainingBatches(store, recipe.batches, 1).epoch(0)
    for record in loop.fit(state, epoch, stage, assembly.device):
        share = record.lr / 0.02
        assert 0 < share < 1 and math.isfinite(record.loss)
        rates = {round(group["lr"] / share, 6) for group in state.optimizer.param_groups}
        assert rates == {0.02, 0.01}
    table = assembly.model.items.weight
    assert rows_of(table, torch.tensor([1], device=table.device)).isfinite().all()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"scaling": {"rule": "linear"}}, "needs tokens"),
        ({"scaling": {"rule": "cowclip", "tokens": 512}}, "tables: rows"),
        ({"optimizer": {"kind": "adamw", "tables_lr": 0.1}}, "tables=rows"),
        ({"optimizer": {"kind": "adamw", "clip_rows": 1.0}}, "tables=rows"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(train, words):
    with pytest.raises(UserError, match=words):
        recipes.from_tree(tree_of(**train), "the test")
