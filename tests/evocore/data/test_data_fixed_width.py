"""Numbers at fixed places: JSON to everybody, parsed by arithmetic, and never accepted in another spelling."""

import json

import pytest
from data_files import write_bin
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.data.fixed_width import parse, spell
from evocore.data.record_writer import Record
from evocore.data.records import TokenizedFile, read_fragments
from evocore.errors import UserError

SIX_PLACES = st.lists(st.one_of(st.integers(0, 999), st.integers(0, 999_999)), min_size=1, max_size=40)
ANY = st.lists(st.integers(-1000, 2**31 - 1), min_size=1, max_size=20)


@given(st.lists(SIX_PLACES, min_size=1, max_size=5))
def test_what_is_spelt_is_json_and_comes_back(lists):
    texts = [spell(tokens) for tokens in lists]

    assert [json.loads(b"[%s]" % text) for text in texts] == lists
    assert parse(texts, sum(map(len, lists))).tolist() == [token for tokens in lists for token in tokens]


@pytest.mark.parametrize("tokens", [[], [5, -1], [1_000_000], [3, 2**31 - 1]])
def test_what_does_not_fit_six_places_is_not_spelt(tokens):
    assert spell(tokens) is None


@settings(max_examples=300)
@given(st.text(alphabet=" 0123456789,-.", min_size=6, max_size=6))
def test_only_blanks_and_then_digits_are_accepted(places):
    found = parse([places.encode()], 1)

    digits = places.lstrip(" ")
    assert (found is not None) == (digits.isdecimal() and digits.isascii())
    if found is not None:
        assert found.tolist() == [int(digits)]


@pytest.mark.parametrize("text", [b"     1;      2", b"     1,     2", b"     1 ,     2", b"     1,      2,"])
def test_other_separators_and_lengths_are_not_accepted(text):
    assert parse([text], 2) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(SIX_PLACES, ANY), st.booleans()), min_size=1, max_size=6), st.data())
def test_files_may_mix_the_spellings(tmp_path_factory, documents, data):
    lines = [
        Record.of(tokens).line.decode().rstrip("\n") if ours else json.dumps({"tokens": tokens})
        for tokens, ours in documents
    ]
    path = write_bin(tmp_path_factory.mktemp("mixed") / "a.bin", [tokens for tokens, _ in documents], lines=lines)
    file = TokenizedFile(path)
    fragments, expected = [], []
    for row, (tokens, _) in enumerate(documents):
        start = data.draw(st.integers(0, len(tokens) - 1))
        stop = data.draw(st.integers(start + 1, len(tokens)))
        fragments.append((file, row, start, stop))
        expected += tokens[start:stop]

    ids, targets = read_fragments(fragments)

    assert ids.tolist() == [abs(token) for token in expected]
    assert targets.tolist() == [token if token > 0 else -100 for token in expected]


@pytest.mark.parametrize(
    ("line", "fragment", "expected"),
    [
        ('{"tokens":  [100000000, -1, -10000]}', (0, 1), [100000000]),  # the number goes on behind six places
        ('{"tokens":  [-10000,  -1, 100000000]}', (2, 3), [100000000]),  # and begins before them
        ('{"tokens":  [     1,      2, 3     ]}', (0, 3), [1, 2, 3]),
        ('{"tokens":  [1, 1222222222, 3333333]}', (2, 3), [3333333]),
    ],
)
def test_another_spelling_of_the_same_length_is_read_as_what_it_is(bin_file, line, fragment, expected):
    tokens = json.loads(line)["tokens"]
    line = line.replace("]", " " * (len(Record.of([0] * len(tokens)).line) - 1 - len(line)) + "]")
    assert len(line) + 1 == len(Record.of([0] * len(tokens)).line)
    file = TokenizedFile(bin_file("a.bin", [tokens], lines=[line]))

    ids, _ = read_fragments([(file, 0, *fragment)])
    assert ids.tolist() == expected


def test_damage_in_a_line_at_fixed_places_is_named(bin_file):
    line = Record.of([11, 22, 33]).line.decode().rstrip("\n").replace("    22", "  2 2 ")
    path = bin_file("a.bin", [[11, 22, 33]], lines=[line])

    with pytest.raises(UserError, match="line 1 at byte 0: not valid JSON"):
        read_fragments([(TokenizedFile(path), 0, 0, 3)])


@pytest.mark.parametrize("large", [5, 5_000_000])  # the latter has no fixed places
@pytest.mark.parametrize(("trained", "expected"), [(None, -100), ([True, True], 0), ([False, True], -100)])
def test_token_0_is_a_target_where_somebody_says_so(tmp_path, large, trained, expected):
    line = Record.of([0, large], trained).line.decode().rstrip("\n")
    path = write_bin(tmp_path / "a.bin", [[0, large]], lines=[line])

    ids, targets = read_fragments([(TokenizedFile(path), 0, 0, 2)])

    assert ids.tolist() == [0, large] and targets.tolist() == [expected, large]
