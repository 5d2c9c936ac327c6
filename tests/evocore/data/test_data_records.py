"""The file format: what is read, in every spelling, and how a broken file is named."""

import json

import numpy as np
import pytest
from data_files import write_bin
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.data.records import TokenizedFile, read_fragments
from evocore.errors import UserError

TOKENS = st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=12)


def plain_targets(document, mask=None):
    if mask is None:
        return [token if token > 0 else -100 for token in document]
    return [abs(token) if wanted else -100 for token, wanted in zip(document, mask, strict=True)]


def read(path, *fragments):
    file = TokenizedFile(path)
    ids, targets = read_fragments([(file, *fragment) for fragment in fragments])
    assert ids.dtype == targets.dtype == np.int64
    return ids.tolist(), targets.tolist()


def spellings(document, mask):
    """The same record as others may write it."""
    tokens = json.dumps(document)
    yield json.dumps({"tokens": document}), None
    yield json.dumps({"tokens": document}, separators=(",", ":")), None
    yield '{"tokens": ' + tokens.replace(" ", "  ") + "}\r", None
    yield json.dumps({"id": [1, 2], "tokens": document, "text": "]}"}), None
    yield json.dumps({"tokens": document, "other": 1}), None
    yield json.dumps({"tokens": document, "loss_mask": mask}), mask
    yield json.dumps({"loss_mask": mask, "tokens": document}), mask


@settings(max_examples=60, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=6), st.data())
def test_any_fragments_of_any_spelling_are_read_exactly(tmp_path_factory, documents, data):
    masks = [data.draw(st.lists(st.integers(0, 1), min_size=len(d), max_size=len(d))) for d in documents]
    chosen = [data.draw(st.sampled_from(list(spellings(d, m)))) for d, m in zip(documents, masks, strict=True)]
    path = write_bin(
        tmp_path_factory.mktemp("any") / "a.bin",
        documents,
        lines=[line for line, _ in chosen],
        dtype=data.draw(st.sampled_from([np.int32, np.int64])),
    )
    fragments = []
    for _ in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.integers(0, len(documents) - 1))
        start = data.draw(st.integers(0, len(documents[row]) - 1))
        fragments.append((row, start, data.draw(st.integers(start + 1, len(documents[row])))))

    ids, targets = read(path, *fragments)

    assert ids == [abs(token) for row, start, stop in fragments for token in documents[row][start:stop]]
    assert targets == [
        target
        for row, start, stop in fragments
        for target in plain_targets(documents[row], chosen[row][1])[start:stop]
    ]


def test_signs_say_where_there_is_no_loss_and_a_mask_wins_over_them(bin_file):
    documents = [[5, -6, 0, 7], [5, -6, 0, 7]]
    masked = '{"tokens": [5, -6, 0, 7], "loss_mask": [0, 1, 1, 0]}'
    path = bin_file("a.bin", documents, lines=['{"tokens": [5, -6, 0, 7]}', masked])

    assert read(path, (0, 0, 4)) == ([5, 6, 0, 7], [5, -100, -100, 7])
    assert read(path, (1, 0, 4)) == ([5, 6, 0, 7], [-100, 6, 0, -100])
    assert read(path, (1, 1, 3)) == ([6, 0], [6, 0])


def test_a_long_document_is_read_from_its_middle(bin_file):
    documents = [list(range(1, 30)), [*range(1, 60_000)], list(range(100, 140))]
    path = bin_file("a.bin", documents)

    assert read(path, (1, 40_123, 40_128), (2, 39, 40), (1, 59_990, 59_999))[0] == [
        *range(40_124, 40_129),
        139,
        *range(59_991, 60_000),
    ]


def test_the_last_line_needs_no_newline(bin_file):
    path = bin_file("a.bin", [[1, 2], [3, 4, 5]])
    path.write_bytes(path.read_bytes()[:-1])

    assert read(path, (1, 0, 3))[0] == [3, 4, 5]


@pytest.mark.parametrize(
    ("lines", "row", "told"),
    [
        (['{"tokens": [1, 2]}', '{"tokens": [1, 2, 3, 4]}'], 1, r"line 2 at byte 19: 4 tokens, but the .meta says 3"),
        (['{"tokens": [1, 2]}', '{"tokens": [1, 2]}'], 1, r"line 2 at byte 19: 2 tokens, but the .meta says 3"),
        (['{"tokens": [1, 2.0]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: no list of integers"),
        (['{"tokens": [1, true]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: no list of integers"),
        (['{"token": [1, 2]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: no list of integers"),
        (["[1, 2]", '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: no list of integers"),
        (['{"tokens": [1 2]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: not valid JSON"),
        (['{"tokens": [1,, 2]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: not valid JSON"),
        (['{"tokens": [1, 2', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: not valid JSON"),
        (['{"tokens": [1, 4294967296]}', '{"tokens": [1, 2, 3]}'], 0, r"line 1 at byte 0: a token id of 4294967296"),
        (['{"tokens": [1, 99999999999999999999]}', '{"tokens": [1, 2, 3]}'], 0, r"a token id of 9{20}"),
        (['{"tokens": [1, 2], "loss_mask": [1]}', '{"tokens": [1, 2, 3]}'], 0, r'"loss_mask" is not a list'),
        (['{"tokens": [1, 2], "loss_mask": [1, 2]}', '{"tokens": [1, 2, 3]}'], 0, r'"loss_mask" is not a list'),
    ],
)
def test_a_broken_line_is_named_with_its_file_and_place(bin_file, lines, row, told):
    path = bin_file("a.bin", [[1, 2], [1, 2, 3]], lines=lines)
    good = [fragment for fragment in [(0, 0, 2), (1, 0, 3)] if fragment[0] != row]

    with pytest.raises(UserError, match=told) as caught:
        read(path, *good, (row, 0, 2 + row))
    assert str(path) in caught.value.wrong


def test_two_wrong_counts_that_cancel_out_are_still_found(bin_file):
    path = bin_file("a.bin", [[1, 2], [1, 2, 3]], lines=['{"tokens": [1, 2, 3]}', '{"tokens": [1, 2]}'])

    with pytest.raises(UserError, match="line 1 at byte 0: 3 tokens, but the .meta says 2"):
        read(path, (0, 0, 2), (1, 0, 3))


def test_a_file_that_is_cut_short_is_said_to_be(bin_file):
    path = bin_file("a.bin", [[1, 2], [3, 4, 5]])
    path.write_bytes(path.read_bytes()[:-5])

    assert read(path, (0, 0, 2))[0] == [1, 2]
    with pytest.raises(UserError, match="line 2 at byte 19: not valid JSON .* cut short"):
        read(path, (1, 0, 3))


def test_an_offset_inside_a_line_is_found(bin_file):
    path = bin_file("a.bin", [[1, 2], [3, 4, 5]])
    with open(f"{path}.meta", "wb") as file:
        np.save(file, np.array([[0, 2], [20, 3]]))

    with pytest.raises(UserError, match="line 2 at byte 20: the offset in the .meta is not at the start of a line"):
        read(path, (1, 0, 3))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.array([[0, 2], [4000, 3]]), "sample 1 has offset 4000"),
        (np.array([[0, 2], [-19, 3]], np.int32), "sample 1 has offset -19"),
        (np.array([[0, 2], [0, 3]]), "sample 1 has offset 0"),
        (np.array([[0, 2], [19, -3]]), "and -3 tokens"),
        (np.array([0, 2]), "holds int64 of shape"),
        (np.array([[0.0, 2.0]]), "holds float64"),
        (np.array([[{}, 2]], object), "is not a readable .npy file"),
    ],
)
def test_an_index_that_cannot_be_right_is_refused_at_the_start(bin_file, rows, told):
    path = bin_file("a.bin", [[1, 2], [3, 4, 5]])
    with open(f"{path}.meta", "wb") as file:
        np.save(file, rows, allow_pickle=True)

    with pytest.raises(UserError, match=told) as caught:
        TokenizedFile(path)
    assert f"{path}.meta" in caught.value.wrong


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"hello"])
def test_an_index_that_is_no_array_is_refused(bin_file, content):
    path = bin_file("a.bin", [[1]])
    path.with_name("a.bin.meta").write_bytes(content)

    with pytest.raises(UserError, match="is not a readable .npy file"):
        TokenizedFile(path)


def test_a_missing_index_is_named(bin_file):
    path = bin_file("a.bin", [[1]])
    path.with_name("a.bin.meta").unlink()

    with pytest.raises(UserError, match="has no index a.bin.meta"):
        TokenizedFile(path)


def test_an_index_with_more_columns_counts_by_the_last(bin_file):
    path = bin_file("a.bin", [[1, 2], [3, 4, 5]])
    with open(f"{path}.meta", "wb") as file:
        np.save(file, np.array([[0, 77, 2], [19, 77, 3]]))

    assert read(path, (1, 0, 3))[0] == [3, 4, 5]


def test_an_empty_file_has_no_documents(bin_file):
    assert len(TokenizedFile(bin_file("a.bin", [])).counts) == 0
