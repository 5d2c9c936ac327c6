"""Backward in two parts exchanges what backward in one does, and each of it once."""

import parallel_counted_cases as cases
import pytest
from parallel_counted_runs import run


def case(schedule, shared):
    return cases.Case(
        4,
        shared | dict(pipeline=dict(size=2, mode=schedule)),
        dict(data=dict(micro_num=3), model=dict(checkpoint=0.5)),
    )


@pytest.mark.parametrize(
    "shared",
    [cases.tensor(2, "mtp"), cases.tensor(2, "msp"), cases.tensor(2, "fsp"), cases.sharded(2, 2)],
    ids=["mtp", "msp", "fsp", "isp"],
)
def test_a_split_backward_exchanges_everything_once(shared, ranks, tmp_path):
    whole, split = (ranks(4, run, case(name, shared), tmp_path) for name in ("1F1B", "ZBH1"))

    for rank, (one, two) in enumerate(zip(whole, split, strict=True)):
        assert any(ranks == (rank // 2 * 2, rank // 2 * 2 + 1) for _, ranks in one.totals(1))
        assert two.totals(1) == one.totals(1)


def test_a_stage_tells_the_next_one_tensor_for_each_micro_batch_and_nothing_else(ranks, tmp_path):
    for rank, seen in enumerate(ranks(4, run, case("1F1B", cases.tensor(2, "msp")), tmp_path)):
        messages = {key: value for key, value in seen.totals(2).items() if key[0] in ("send", "recv")}
        up, down = ("send", "recv") if rank < 2 else ("recv", "send")
        elements = cases.TOKENS // 2 * cases.MODEL["hidden_size"]
        assert messages == {(up, "pipeline"): (3, 3 * 4 * elements), (down, "pipeline_down"): (3, 3 * 4 * elements)}
