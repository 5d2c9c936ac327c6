"""Slurm's lists of machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocore.errors import UserError
from evocore.parallel.nodelist import expand_nodes


@pytest.mark.parametrize(
    "text, names",
    [
        ("host", ["host"]),
        ("a,b-1.site", ["a", "b-1.site"]),
        ("node[01-04,07]", ["node01", "node02", "node03", "node04", "node07"]),
        ("node[8-10]", ["node8", "node9", "node10"]),
        ("gpu[1-2]-ib,login", ["gpu1-ib", "gpu2-ib", "login"]),
        ("rack[1-2]node[3,5]", ["rack1node3", "rack1node5", "rack2node3", "rack2node5"]),
        ("a[1],b[002-003]", ["a1", "b002", "b003"]),
    ],
)
def test_forms(text, names):
    assert expand_nodes(text) == names


@pytest.mark.parametrize(
    "text", ["", "node[", "node[1-", "node[]", "node[3-1]", "node[a-b]", "a,,b", "a,", "n[1]]", "a b"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match="cannot be read"):
        expand_nodes(text)


@given(st.lists(st.integers(0, 999), min_size=1, unique=True), st.integers(3, 5))
def test_single_numbers_come_back_in_order_with_their_zeros(numbers, width):
    padded = [f"{number:0{width}}" for number in numbers]
    assert expand_nodes(f"n[{','.join(padded)}]") == [f"n{number}" for number in padded]
