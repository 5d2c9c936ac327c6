"""Finding datasets on disk: files, types, short documents, and what is said when there is nothing."""

from pathlib import Path

import pytest

from evocore.data import tokenized
from evocore.data.documents import Fragment
from evocore.data.tokenized import LengthFilter, TokenizedDocuments, find_bins, require_bins, type_of
from evocore.errors import UserError


def test_files_are_found_in_sorted_order_through_links_and_circles(bin_file, tmp_path):
    for name in ("root/z/a.bin", "root/b.bin", "root/a/x/c.bin", "elsewhere/d.bin"):
        bin_file(name, [[1]])
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/circle").symlink_to(tmp_path / "root")

    found = [path.relative_to(tmp_path / "root").as_posix() for path in find_bins(tmp_path / "root")]

    assert found == ["a/x/c.bin", "b.bin", "link/d.bin", "z/a.bin"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("en/a.bin", "en"),
        ("web/zz_cn/part/a.bin", "cn"),
        ("_code/a.bin", "code"),
        ("english/a.bin", "english"),
        ("books/2024/a.bin", "books"),
        ("a.bin", "default"),
    ],
)
def test_the_type_comes_from_the_folders(path, name):
    assert type_of(Path("/data/ja/train", path), Path("/data/ja/train")) == name


def test_short_documents_are_dropped_by_type(bin_file, tmp_path):
    paths = [bin_file("cn/a.bin", [[1], [1, 2], [1, 2, 3], []]), bin_file("en/b.bin", [[4], [4, 5], [], [4, 5, 6]])]

    documents = TokenizedDocuments(paths, tmp_path, LengthFilter(2, {"en": 3}))

    assert documents.lengths.tolist() == [2, 3, 3]
    assert documents.read([Fragment(2, 0, 3), Fragment(0, 1, 2), Fragment(1, 0, 3)])[0].tolist() == [
        4,
        5,
        6,
        2,
        1,
        2,
        3,
    ]
    assert [documents.type_of(number) for number in range(3)] == [0, 0, 1]
    assert TokenizedDocuments(paths, tmp_path).lengths.tolist() == [1, 2, 3, 1, 2, 3]


def test_more_files_than_may_be_open_at_once(bin_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenized, "_OPEN_FILES", 2)
    paths = [bin_file(f"{number}.bin", [[number, number + 1]]) for number in range(1, 6)]

    documents = TokenizedDocuments(paths, tmp_path)

    for _ in range(2):
        ids, _ = documents.read([Fragment(number, 0, 2) for number in range(5)])
        assert ids.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]


def test_a_missing_and_an_empty_folder_are_named_with_their_key(tmp_path):
    with pytest.raises(UserError, match=r"data\.train_folder: the folder .*nowhere does not exist"):
        require_bins(tmp_path / "nowhere", "data.train_folder")
    with pytest.raises(UserError, match=r"data\.valid_folder: there is no \.bin file below"):
        require_bins(tmp_path, "data.valid_folder")


def test_a_dataset_without_long_enough_documents_is_refused(bin_file, tmp_path):
    with pytest.raises(UserError, match="no document in the 1 .bin files .* has enough tokens"):
        TokenizedDocuments([bin_file("a.bin", [[1, 2], []])], tmp_path, LengthFilter(3))
