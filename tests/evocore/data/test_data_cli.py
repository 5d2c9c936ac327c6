"""``evocore data tokenize`` and ``evocore data inspect`` through the program's own door."""

import json
import subprocess
import sys

import pytest

from evocore.cli.main import main


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.py").write_text(
            f"def function_{number}(argument):\n    return argument + {number}\n" * 5
        )
    return folder


def run(capsys, *arguments):
    code = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_tokenize_and_inspect_a_folder(capsys, tmp_path, text):
    out = tmp_path / "out"

    options = ["--train-tokenizer", "--vocab-size", 330, "--suffix", ".py", "--valid-fraction", 0.3, "--json"]
    code, answer, errors = run(capsys, "tokenize", text, "--out", out, *options)
    made = json.loads(answer)
    assert (code, errors) == (0, "")
    assert made["vocab_size"] == 330 and made["train_samples"] + made["valid_samples"] == 20

    code, answer, errors = run(capsys, "inspect", out / "train", "--tokenizer", out / "tokenizer.model", "--json")
    (report,) = json.loads(answer)
    assert (code, errors) == (0, "")
    assert report["type"] == "code"
    assert report["samples"] == made["train_samples"] and report["tokens"] == made["train_tokens"]
    assert report["problems"] == [] and report["masked"] == 0 and report["largest_id"] < 330
    assert report["first_sample"].startswith("def function_")

    code, answer, _ = run(capsys, "inspect", out)
    assert code == 0
    assert "train/code/part-00000.bin" in answer and "valid/code/part-00000.bin" in answer
    assert f"{made['train_tokens']:,}" in answer


def test_inspect_tells_facts_and_problems_of_every_file(capsys, tmp_path, bin_file):
    bin_file("en/good.bin", [[5, -6, 7], [8]])
    bin_file("en/large.bin", [[5, 900]])
    bin_file("en/broken.bin", [[1, 2], [3]], lines=['{"tokens": [1, 2]}', '{"tokens": [3, 4]}'])
    bin_file("en/empty.bin", [[1], []])
    bin_file("en/lost.bin", [[1]]).with_name("lost.bin.meta").unlink()

    code, answer, _ = run(capsys, "inspect", tmp_path, "--vocab-size", 100, "--json")

    reports = {report["path"].rsplit("/", 1)[1]: report for report in json.loads(answer)}
    assert code == 2
    assert reports["good.bin"] == {
        "path": str(tmp_path / "en/good.bin"),
        "type": "en",
        "samples": 2,
        "tokens": 4,
        "min_length": 1,
        "mean_length": 2.0,
        "max_length": 3,
        "largest_id": 8,
        "masked": 0.25,
        "problems": [],
    }
    assert reports["large.bin"]["problems"] == ["token id 900, the vocabulary has 100"]
    assert "line 2 at byte 19: 2 tokens, but the .meta says 1" in reports["broken.bin"]["problems"][0]
    assert reports["empty.bin"]["problems"] == ["1 samples without tokens, which are never used"]
    assert "has no index lost.bin.meta" in reports["lost.bin"]["problems"][0]

    code, answer, _ = run(capsys, "inspect", tmp_path)
    assert code == 2 and "has no index lost.bin.meta" in answer


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "there is no tokenizer to use"),
        (["--train-tokenizer", "--tokenizer", "x"], "--tokenizer and --train-tokenizer are both given"),
        (["--tokenizer", "nowhere.model"], "there is no tokenizer at nowhere.model"),
    ],
)
def test_mistakes_are_three_lines_and_code_2(capsys, tmp_path, text, options, told):
    code, answer, errors = run(capsys, "tokenize", text, "--out", tmp_path / "out", "--suffix", ".py", *options)

    assert (code, answer) == (2, "")
    assert told in errors and len(errors.splitlines()) == 3
    assert not (tmp_path / "out/train").exists()


def test_an_empty_folder_is_a_mistake(capsys, tmp_path):
    code, _, errors = run(capsys, "inspect", tmp_path)

    assert code == 2 and "there is no .bin file below" in errors


def test_the_tools_do_without_torch():
    check = "import sys, evocore.cli.data; assert 'numpy' not in sys.modules"
    for name in ("tokenize", "raw", "inspection"):
        check += f"; import evocore.data.{name}"

    done = subprocess.run(
        [sys.executable, "-c", f"{check}; print('torch' in sys.modules)"], capture_output=True, text=True
    )

    assert done.stdout == "False\n", done.stderr
