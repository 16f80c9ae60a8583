"""What arithmetic is counted, whatever way a product is asked for."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from turborec.bench.evidence import FORMULAS


def test_a_product_that_is_told_its_type_is_counted_as_any_other():
    total, left, right = torch.zeros(3, 5), torch.zeros(3, 7, dtype=torch.bfloat16), torch.zeros(7, 5, dtype=torch.bfloat16)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter:
        counter._count_flops(torch.ops.aten.addmm, total, (total, left, right, torch.float32), {})
        counter._count_flops(torch.ops.aten.mm, total, (left, right, torch.float32), {})
        torch.mm(left, right)
    assert counter.get_total_flops() == 3 * 2 * 3 * 7 * 5
