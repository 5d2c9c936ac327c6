"""Orders by formula: each is a permutation, and the same for ever."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evocore.data.permutation import Permutation
from evocore.seeds import derive_seed


@given(st.integers(1, 2000), st.integers(0, 2**64 - 1))
def test_every_element_comes_once(size, seed):
    order = Permutation(size, seed)(np.arange(size)).tolist()

    assert sorted(order) == list(range(size))
    assert Permutation(size, seed).all().tolist() == order


@given(st.integers(2, 2**40), st.integers(0, 2**32), st.data())
def test_an_element_can_be_asked_for_alone(size, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)))

    together = Permutation(size, seed)(places)

    assert together.tolist() == [Permutation(size, seed)(np.array([place])).item() for place in places]
    assert (together >= 0).all() and (together < size).all()


def test_the_order_of_today_is_that_of_old_checkpoints():
    assert Permutation(10, 7)(np.arange(10)).tolist() == [1, 0, 6, 7, 4, 2, 8, 3, 9, 5]
    assert derive_seed(1024, 2, 0) == 327039703052673161


def test_each_element_comes_to_each_place_equally_often():
    orders = np.array([Permutation(6, seed)(np.arange(6)) for seed in range(1500)])

    for place in range(6):
        counts = Counter(orders[:, place].tolist())
        assert all(abs(counts[element] - 250) < 72 for element in range(6)), counts  # 5 standard deviations


def test_a_long_order_is_made_in_blocks():
    permutation = Permutation(40_000, 5)

    assert (permutation.all() == permutation(np.arange(40_000))).all()


def test_neighbours_are_torn_apart():
    order = Permutation(100_000, 1)(np.arange(100_000))

    assert np.abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert (np.abs(np.diff(order)) == 1).sum() < 20
