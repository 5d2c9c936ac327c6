"""Which text is read: kinds of files, what is left out, and choices that depend on relative paths alone."""

import json

import pytest

from evocore.data.encoding import Recipe
from evocore.data.sources import SourceFile, find_sources, hashed, read_records
from evocore.errors import UserError


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def keys(sets):
    return {one.name: [file.key for file in one.files] for one in sets}


def documents(path, field="text", start=0, stop=None):
    file = SourceFile(path, "k", start, path.stat().st_size if stop is None else stop)
    return [Recipe(field=field).read(file, record) for record in read_records(file)]


def test_folders_and_files_become_sets_in_sorted_order(tmp_path):
    put(tmp_path, {"src/b.py": "b", "src/a/c.py": "c", "src/a.txt": "t", "src/empty.py": "", "one.jsonl": '"x"'})
    put(tmp_path, {"other/src/d.py": "d", "src/tests/e.py": "e", "src/a/skip_me.py": "f"})
    sources = [tmp_path / "src", tmp_path / "one.jsonl", tmp_path / "other/src"]

    found = keys(find_sources(sources, [".py"], ["tests", "a/skip*"]))

    assert found == {"src": ["a/c.py", "b.py"], "one": ["one.jsonl"], "src-2": ["d.py"]}
    assert keys(find_sources(sources[:1])) == {"src": ["a.txt"]}


def test_a_limit_chooses_files_by_their_names_and_cuts_lines(tmp_path):
    for root in ("here", "there"):
        put(tmp_path / root, {f"{number}.py": "x" * 10 for number in range(100)})
    put(tmp_path, {"a.jsonl": '"0123456"\n' * 100})

    chosen = keys(find_sources([tmp_path / "here"], [".py"], max_bytes=205))["here"]
    (lines,) = find_sources([tmp_path / "a.jsonl"], max_bytes=205)

    assert len(chosen) == 20
    assert keys(find_sources([tmp_path / "there"], [".py"], max_bytes=205))["there"] == chosen
    assert set(chosen) < set(keys(find_sources([tmp_path / "here"], [".py"], max_bytes=305))["here"])
    assert chosen != sorted(f"{number}.py" for number in range(100))[:20]
    assert len(list(read_records(lines.files[0]))) == 21  # the last one begins before the limit


def test_every_kind_of_file_gives_its_documents(tmp_path):
    put(
        tmp_path,
        {"a.txt": "á\r\nb", "b.json": '[{"text": "x"}, "y"]', "c.json": '{"body": "z"}', "d.py": b"\xff\xfe"},
    )
    put(tmp_path, {"e.jsonl": '{"text": "x\\ud800"}\n\n"y"\n{"text": "z", "n": 1}'})

    assert documents(tmp_path / "a.txt") == ["á\r\nb"]
    assert documents(tmp_path / "b.json") == ["x", "y"]
    assert documents(tmp_path / "c.json", "body") == ["z"]
    assert documents(tmp_path / "d.py") == []
    assert documents(tmp_path / "e.jsonl") == ["x\ufffd", "y", "z"]


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_two_parts_of_a_file_of_lines_hold_each_line_once(tmp_path, cut):
    put(tmp_path, {"a.jsonl": "".join(json.dumps("x" * number) + "\n" for number in range(10))})

    parts = documents(tmp_path / "a.jsonl", stop=cut) + documents(tmp_path / "a.jsonl", start=cut)

    assert parts == documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '"x"\n{"text": 1', "line 2 is not"),
        ("a.jsonl", '{"body": "x", "id": 1}', "has no text under 'text', but 'body', 'id'"),
        ("a.jsonl", '"x"\n17', "line 2 has no text under 'text', but int"),
        ("a.jsonl", b'"\xff"', "line 1 is not"),
        ("a.json", '[{"text": "x"}, {"text": null}]', "entry 1 has no text"),
        ("a.json", "[", "a.json is not"),
    ],
)
def test_bad_json_is_named_with_its_place(tmp_path, name, content, told):
    put(tmp_path, {name: content})

    with pytest.raises(UserError, match=told) as caught:
        documents(tmp_path / name)
    assert name in caught.value.wrong


def test_missing_sources_and_no_text_are_mistakes(tmp_path):
    with pytest.raises(UserError, match="the source .*nowhere does not exist"):
        find_sources([tmp_path / "nowhere"])
    put(tmp_path, {"a.py": "x"})
    with pytest.raises(UserError, match="no text in"):
        find_sources([tmp_path], [".txt"])
    with pytest.raises(UserError, match="no text in") as caught:
        find_sources([tmp_path], [".py"], max_bytes=0)
    assert "max_bytes=0" in caught.value.expected


def test_hashes_are_even_and_independent():
    values = [(hashed(f"{number}", "valid"), hashed(f"{number}", "limit")) for number in range(4000)]

    assert abs(sum(first < 0.1 for first, _ in values) - 400) < 100
    assert abs(sum(first < 0.5 and second < 0.5 for first, second in values) - 1000) < 140
