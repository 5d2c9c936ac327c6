"""Packing against a slow implementation in plain Python that walks the stream token by token."""

import pytest
from data_files import write_bin
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.data.padded_rows import PaddedRows
from evocore.data.random_documents import RandomDocuments
from evocore.data.stream_packing import DocumentPacking, WindowPacking
from evocore.data.tokenized import TokenizedDocuments
from evocore.errors import UserError

IGNORED = -100


def slow_documents(documents, seq_len, micro_bsz):
    """Tokens, labels, positions and ends of spans of each pack when documents are kept apart; a tail is filled up."""
    length = seq_len * micro_bsz
    stream = []  # (token, label, first of its document)
    for document in documents:
        for place, token in enumerate(document):
            following = document[place + 1] if place + 1 < len(document) else 0
            stream.append((abs(token), following if following > 0 else IGNORED, place == 0))
    packs = []
    for start in range(0, len(stream), length):
        part = stream[start : start + length]
        spans = []
        for place, (_, _, first) in enumerate(part):
            if place == 0 or first or len(spans[-1]) == seq_len:
                spans.append([])
            spans[-1].append(place)
        packs.append(pack([t for t, _, _ in part], [label for _, label, _ in part], spans, seq_len, length))
    return packs


def slow_windows(documents, seq_len, micro_bsz):
    length = seq_len * micro_bsz
    signed = [token for document in documents for token in document]
    labels = [token if token > 0 else IGNORED for token in signed[1:]] + [IGNORED]
    packs = []
    for start in range(0, len(signed), length):
        tokens = [abs(token) for token in signed[start : start + length]]
        spans = [list(range(len(tokens)))[at : at + seq_len] for at in range(0, len(tokens), seq_len)]
        packs.append(pack(tokens, labels[start : start + length], spans, seq_len, length))
    return packs


def slow_rows(documents, seq_len, micro_bsz):
    packs = []
    for start in range(0, len(documents), micro_bsz):
        tokens, labels = [], []
        for document in documents[start : start + micro_bsz]:
            following = [token if token > 0 else IGNORED for token in document[1:]] + [IGNORED]
            padding = seq_len - len(document)
            tokens += [abs(token) for token in document[:seq_len]] + [0] * padding
            labels += following[:seq_len] + [IGNORED] * padding
        spans = [list(range(at, at + seq_len)) for at in range(0, len(tokens), seq_len)]
        packs.append(pack(tokens, labels, spans, seq_len, seq_len * micro_bsz))
    return packs


def pack(tokens, labels, spans, seq_len, length):
    missing = list(range(len(tokens), length))
    spans = spans + [missing[at : at + seq_len] for at in range(0, len(missing), seq_len)]
    return {
        "tokens": tokens + [0] * len(missing),
        "labels": labels + [IGNORED] * len(missing),
        "positions": [place for span in spans for place in range(len(span))],
        "cu_seqlens": [0, *(span[-1] + 1 for span in spans)],
    }


def plain(batch):
    return {
        "tokens": batch.tokens_T.tolist(),
        "labels": batch.labels_T.tolist(),
        "positions": batch.positions_T.tolist(),
        "cu_seqlens": list(batch.cu_seqlens),
    }


MODES = [(DocumentPacking, slow_documents), (WindowPacking, slow_windows), (PaddedRows, slow_rows)]
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=12)
DOCUMENTS = st.lists(st.lists(st.integers(-99, 99), min_size=1, max_size=25), min_size=1, max_size=8)


@pytest.mark.parametrize(("mode", "slow"), MODES)
@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, seq_len=st.integers(1, 9), micro_bsz=st.integers(1, 3))
def test_every_pack_is_that_of_the_slow_implementation(tmp_path_factory, mode, slow, documents, seq_len, micro_bsz):
    root = tmp_path_factory.mktemp("packs")
    path = write_bin(root / "a.bin", documents)
    made = TokenizedDocuments([path], root)
    expected = slow(documents, seq_len, micro_bsz)

    tail = mode(made, seq_len=seq_len, micro_bsz=micro_bsz, seed=None, keep_tail=True)
    whole = mode(made, seq_len=seq_len, micro_bsz=micro_bsz, seed=None)

    assert [plain(tail[number]) for number in range(len(tail))] == expected
    turned = list(range(len(tail)))[::-1]
    assert [plain(batch) for batch in tail.read(turned)] == expected[::-1]  # several at once are the same
    units = len(documents) // micro_bsz if mode is PaddedRows else sum(map(len, documents)) // (seq_len * micro_bsz)
    assert [plain(whole[number]) for number in range(len(whole))] == expected[:units]


def test_a_pack_by_hand(bin_file, tmp_path):
    path = bin_file("a.bin", [[1, 2, 3], [11, 12, -13, 14, 15, 16, 17], [21, 22]])
    documents = TokenizedDocuments([path], tmp_path)

    first = DocumentPacking(documents, seq_len=4, micro_bsz=2, seed=None)[0]
    window = WindowPacking(documents, seq_len=4, micro_bsz=2, seed=None)[0]

    assert plain(first) == {
        "tokens": [1, 2, 3, 11, 12, 13, 14, 15],
        "labels": [2, 3, -100, 12, -100, 14, 15, 16],  # 13 is masked; 16 is the true next token behind the cut
        "positions": [0, 1, 2, 0, 1, 2, 3, 0],
        "cu_seqlens": [0, 3, 7, 8],
    }
    assert max(first.lengths) == 4
    assert plain(window) == {
        "tokens": [1, 2, 3, 11, 12, 13, 14, 15],
        "labels": [2, 3, 11, 12, -100, 14, 15, 16],
        "positions": [0, 1, 2, 3, 0, 1, 2, 3],
        "cu_seqlens": [0, 4, 8],
    }


@pytest.mark.parametrize("mode", [DocumentPacking, WindowPacking])
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), seed=st.integers(0, 999), length=st.integers(1, 9)
)
def test_an_epoch_holds_every_token_once_but_the_tail(tmp_path_factory, mode, lengths, seed, length):
    total = sum(lengths)
    ids = iter(range(1, total + 1))
    documents = [[next(ids) for _ in range(count)] for count in lengths]
    root = tmp_path_factory.mktemp("epoch")
    packing = mode(
        TokenizedDocuments([write_bin(root / "a.bin", documents)], root), seq_len=length, micro_bsz=1, seed=seed
    )

    seen = [token for number in range(len(packing)) for token in packing[number].tokens_T.tolist()]

    assert len(seen) == len(set(seen)) == total - total % length
    assert set(seen) <= set(range(1, total + 1))


def test_documents_are_shuffled_by_the_seed(bin_file, tmp_path):
    path = bin_file("a.bin", [[number] * 2 for number in range(1, 101)])
    documents = TokenizedDocuments([path], tmp_path)

    def order(seed):
        packing = DocumentPacking(documents, seq_len=200, micro_bsz=1, seed=seed)
        return packing[0].tokens_T.tolist(), packing.fingerprint()

    assert order(1) == order(1)
    assert order(1)[0] != order(2)[0]
    assert sorted(order(1)[0]) == sorted(order(2)[0])


def test_fingerprints_tell_packs_apart(bin_file, tmp_path):
    documents = TokenizedDocuments([bin_file("a.bin", [[1] * n for n in range(1, 30)])], tmp_path)
    fewer = TokenizedDocuments([bin_file("b.bin", [[1] * n for n in range(2, 30)])], tmp_path)
    shapes = [dict(seq_len=4, micro_bsz=2), dict(seq_len=8, micro_bsz=1), dict(seq_len=4, micro_bsz=1)]

    prints = [DocumentPacking(documents, seed=seed, **shape).fingerprint() for shape in shapes for seed in (1, 2)]
    prints += [mode(documents, seed=1, **shapes[0]).fingerprint() for mode in (WindowPacking, PaddedRows)]
    prints += [DocumentPacking(fewer, seed=1, **shapes[0]).fingerprint()]

    assert len(set(prints)) == len(prints)


def test_types_follow_their_tokens(bin_file, tmp_path):
    paths = [bin_file("cn/a.bin", [[1, 1]]), bin_file("z_en/b.bin", [[2, 2, 2]]), bin_file("cn/c.bin", [[3]])]
    documents = TokenizedDocuments(paths, tmp_path)

    packed = DocumentPacking(documents, seq_len=4, micro_bsz=2, seed=None, keep_tail=True)[0]
    rows = PaddedRows(documents, seq_len=2, micro_bsz=4, seed=None, keep_tail=True)[0]

    assert packed.type_names == ("cn", "en")
    assert packed.types_T.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]  # two of padding
    assert rows.types_T.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("mode", [DocumentPacking, WindowPacking, PaddedRows])
def test_filler_has_the_usual_shape_and_no_target(bin_file, tmp_path, mode):
    documents = TokenizedDocuments([bin_file("a.bin", [[1, 2, 3]])], tmp_path)

    filler = mode(documents, seq_len=4, micro_bsz=2, seed=None, keep_tail=True).filler()

    assert plain(filler) == {
        "tokens": [0] * 8,
        "labels": [-100] * 8,
        "positions": [0, 1, 2, 3] * 2,
        "cu_seqlens": [0, 4, 8],
    }
    assert filler.types_T.tolist() == [0] * 8


@pytest.mark.parametrize("mode", [DocumentPacking, WindowPacking, PaddedRows])
def test_an_id_beyond_the_vocabulary_is_named(bin_file, tmp_path, mode):
    paths = [bin_file("a.bin", [[1]]), bin_file("b.bin", [[9], [1, 2, -50, 4], [5]])]
    documents = TokenizedDocuments(paths, tmp_path)

    mode(documents, seq_len=4, micro_bsz=4, seed=None, vocab_size=51, keep_tail=True)[0]
    with pytest.raises(UserError, match="b.bin, line 2: token id 50, model.vocab_size is 50"):
        mode(documents, seq_len=4, micro_bsz=4, seed=None, vocab_size=50, keep_tail=True)[0]


@pytest.mark.parametrize("fixed", [True, False])
def test_random_documents_depend_on_seed_and_place_alone(fixed):
    def make(seed):
        return RandomDocuments(count=40, max_length=16, vocab_size=5, seed=seed, fixed_length=fixed)

    def packs(seed):
        packing = DocumentPacking(make(seed), seq_len=16, micro_bsz=2, seed=3, vocab_size=5)
        return [plain(packing[number]) for number in range(len(packing))]

    lengths = make(1).lengths.tolist()
    assert (set(lengths) == {16}) if fixed else (len(set(lengths)) > 8 and max(lengths) <= 16 and min(lengths) >= 1)
    assert packs(1) == packs(1) != packs(2)
    assert {token for one in packs(1) for token in one["tokens"]} == {1, 2, 3, 4}
    assert DocumentPacking(make(1), seq_len=16, micro_bsz=1, seed=3)[0].types_T is None
