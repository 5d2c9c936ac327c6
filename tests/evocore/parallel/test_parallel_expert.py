"""Experts on several ranks against the same experts in one process, with loads as uneven as they come."""

import parallel_experts as run
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evocore.parallel.expert import transpose_runs
from evocore.parallel.expert_sharding import shard_experts
from evocore.parallel.placement import Box
from evocore.parallel.sharding import Part

FEW = [[0, 1], [1, 0], [0, 1], [1, 7], [0, 1], [1, 0], [0, 1], [1, 0], [7, 0], [0, 1], [1, 0], [0, 1]]
"""Of 8 experts, most have nothing to do."""
SOME = [[(3 * t) % 8, (3 * t + 1 + t % 5) % 8] for t in range(12)]
DROPPED = [[-1 if t % 3 == 0 else t % 8, (t + 3) % 8 if t % 2 else -1] for t in range(12)]
CHOICES = {"few": FEW, "some": SOME, "dropped": DROPPED, "none": [[-1, -1]] * 12}
UNEVEN = [(0, 1), (1, 6), (6, 6), (6, 12)]
"""Tokens of each rank: one has none."""


def close(actual, expected):
    largest = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * largest)


def summed(parts, shape):
    """What ranks have of a gradient, added up in the whole."""
    total = torch.zeros(shape)
    for boxes, local in parts:
        flat, begin = local.flatten(), 0
        for box in boxes:
            box = Box(**box)
            box.of(total).add_(flat[begin : begin + box.numel].view(box.sizes))
            begin += box.numel
    return total


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_runs_are_transposed_and_back(lengths, data):
    rows = data.draw(st.sampled_from([n for n in range(1, len(lengths) + 1) if len(lengths) % n == 0]))
    table = [lengths[start :: len(lengths) // rows] for start in range(len(lengths) // rows)]
    x_R1 = torch.arange(sum(lengths))[:, None]

    turned_R1 = transpose_runs(x_R1, table)

    flipped = [list(column) for column in zip(*table, strict=True)]
    assert transpose_runs(turned_R1, flipped).tolist() == x_R1.tolist()
    starts, begin = {}, 0
    for i, row in enumerate(table):
        for j, length in enumerate(row):
            starts[j, i] = list(range(begin, begin + length))
            begin += length
    assert turned_R1.flatten().tolist() == [place for key in sorted(starts) for place in starts[key]]


@pytest.mark.parametrize("choices", CHOICES)
def test_rows_go_to_four_ranks_and_back(choices, ranks):
    y_TD, of_x, of_weights, gradients = run.alone(12, CHOICES[choices])

    found = ranks(4, run.shared, dict(expert=4), UNEVEN, CHOICES[choices])

    close(torch.cat([one[0] for one in found]), y_TD)
    close(torch.cat([one[1] for one in found]), of_x)
    close(torch.cat([one[2] for one in found]), of_weights)
    for place, gradient in enumerate(gradients):
        close(summed([one[3][place] for one in found], gradient.shape), gradient)
    for one in found:  # counts, then rows there and back; in backward the rows alone
        assert one[4:6] == (["all_to_all"] * 3, ["all_to_all"] * 2)


@pytest.mark.parametrize("mode", ["mtp", "msp", "fsp"])
@pytest.mark.parametrize("divided", [True, False])
def test_tensor_ranks_divide_experts_or_tokens(mode, divided, ranks):
    y_TD, of_x, of_weights, gradients = run.alone(12, DROPPED)
    sizes = dict(tensor=2, mode=mode, expert=2 if divided else 4, expert_tensor=2 if divided else 1)
    replicated = mode == "mtp"
    here = [(0, 6), (0, 6), (6, 12), (6, 12)] if replicated else [(0, 3), (3, 6), (6, 9), (9, 12)]

    found = ranks(4, run.shared, sizes, here, DROPPED)

    for (start, stop), one in zip(here, found, strict=True):
        close(one[0], y_TD[start:stop])
        close(one[1], of_x[start:stop])  # in mtp every rank has the whole gradient
        close(one[2], of_weights[start:stop])
    for place, gradient in enumerate(gradients):
        close(summed([one[3][place] for one in found], gradient.shape), gradient)


@pytest.mark.parametrize("overlap", [False, True])
def test_weights_are_gathered_for_each_use_and_take_no_memory_in_between(overlap, ranks):
    y_TD, of_x, of_weights, gradients = run.alone(12, SOME, layers=2)
    sizes = dict(tensor=4, mode="isp", expert=2, expert_weight=2)
    here = [(0, 3), (3, 6), (6, 9), (9, 12)]

    found = ranks(4, run.shared, sizes, here, SOME, layers=2, overlap=overlap)

    for (start, stop), one in zip(here, found, strict=True):
        close(one[0], y_TD[start:stop])
        close(one[1], of_x[start:stop])
        close(one[2], of_weights[start:stop])
        assert one[4].count("all_gather") == one[5].count("all_gather") == one[5].count("reduce_scatter") == 4
        assert set(one[6]) == {0} and len(one[6]) == 8
        if overlap:  # the second weight is on its way before the first is used, the next layer's before rows return
            assert one[4][2:5] == ["all_gather", "all_gather", "all_gather"]
    for place, gradient in enumerate(gradients):
        close(summed([one[3][place] for one in found], gradient.shape), gradient)


@pytest.mark.parametrize(("expert", "tensor", "weight"), [(1, 1, 1), (4, 1, 1), (2, 2, 1), (2, 1, 3), (1, 4, 1)])
def test_the_parts_of_all_ranks_are_the_whole(expert, tensor, weight):
    counts = {}
    for e in range(expert):
        for t in range(tensor):
            for w in range(weight):
                with torch.device("meta"):
                    model = run.Model(1)
                sharings = shard_experts(model, Part(e, expert), Part(t, tensor), Part(w, weight))
                for name, parameter in model.named_parameters():
                    sharing = sharings[name]
                    assert parameter.shape == sharing.placement.local_shape and sharing.reduce == "expert_data"
                    assert sharing.delivered == (weight > 1)
                    whole = counts.setdefault(name, torch.zeros(sharing.placement.shape))
                    for box in sharing.placement.boxes:
                        box.of(whole).add_(1)
                layer = model.layers[0]
                assert layer.requests()["swiglu"].width == run.WIDTH // tensor
                request = layer.w2.requests()["grouped_linear"]
                sizes = request.inputs, request.outputs, request.experts
                assert sizes == (run.WIDTH // tensor, run.HIDDEN, run.EXPERTS // expert)
    assert len(counts) == 2 and all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize("order", ["probs", "position", "choice"])
def test_a_full_expert_drops_the_same_tokens_wherever_they_are(order, ranks):
    layer, x_TD = run.router(0.5, order)
    expected, record = layer(x_TD), layer.record.take()
    zigzag = [[(0, 2), (14, 16)], [(2, 4), (12, 14)], [(4, 6), (10, 12)], [(6, 8), (8, 10)]]

    found = ranks(4, run.routed, zigzag, 0.5, order)

    for runs, (experts_TK, weights_TK, _) in zip(zigzag, found, strict=True):
        places = [place for start, stop in runs for place in range(start, stop)]
        assert experts_TK.tolist() == expected.experts_TK[places].tolist()
        close(weights_TK, expected.weights_TK[places].detach())
    assert int((expected.experts_TK < 0).sum()) > 0
    close(sum(one[2] for one in found), record)
