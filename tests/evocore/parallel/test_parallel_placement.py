"""Placements: whatever is cut from a parameter, in whatever order, goes back to where it came from."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from evocore.parallel.placement import Box, Placement, even_range


def put_back(placement, local, whole):
    for box, part in zip(placement.boxes, placement.parts(local), strict=True):
        box.of(whole).copy_(part)


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(shape=shapes, data=st.data())
def test_any_range_of_elements_is_a_few_boxes(shape, data):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size + 5))
    whole = torch.arange(1, size + 1).view(shape)

    part = Placement.whole(shape).elements(start, stop)

    assert part.numel == min(stop, size) - start and len(part.boxes) <= 2 * len(shape)
    expected = torch.cat([whole.flatten(), torch.zeros(5, dtype=torch.int64)])[start:stop]
    assert torch.equal(part.take(whole), expected)


@given(shape=st.tuples(st.integers(1, 8), st.integers(1, 5)), parts=st.integers(1, 5), data=st.data())
def test_ranges_of_runs_of_rows_come_from_those_rows(shape, parts, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, shape[0]), min_size=2, max_size=5)) | {0})
    runs = list(zip(cuts[::2], cuts[1::2], strict=False))
    whole = torch.arange(math.prod(shape)).view(shape)
    rows = Placement.whole(shape).rows(runs)
    local = rows.take(whole)
    assert torch.equal(local, torch.cat([whole[start:stop] for start, stop in runs]))
    size = local.numel()

    again = torch.full_like(whole, -1)
    for index in range(parts):
        placement = rows.elements(*even_range(size, parts, index))
        put_back(placement, placement.take(whole), again)

    expected = torch.full_like(whole, -1)
    for start, stop in runs:
        expected[start:stop] = whole[start:stop]
    assert torch.equal(again, expected)


def test_columns():
    whole = torch.arange(12).view(3, 4)
    placement = Placement.whole((3, 4)).columns(1, 3)
    assert torch.equal(placement.take(whole), whole[:, 1:3])
    assert placement.elements(1, 4).take(whole).tolist() == [2, 5, 6]
    assert placement.elements(1, 4).boxes == (Box((0, 2), (1, 1)), Box((1, 1), (1, 2)))
