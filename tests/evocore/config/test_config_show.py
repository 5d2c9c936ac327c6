"""``evocore config show``: the same facts for people and for programs, and nothing else on standard output."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from evocore.cli import config as command
from evocore.errors import UserError

FILE = """
JOB_NAME = "mine"
model_type = "INTERNLM2"
SEQ_LEN = 64
data = dict(seq_len=SEQ_LEN, micro_bsz=2, total_steps=10)
model = dict(num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=128, mlp_ratio=2.0)
ckpt = dict(enable_save_ckpt=False)
"""


@pytest.fixture
def show(write, monkeypatch, tmp_path):
    """Runs the command on a small file in the working folder."""
    write("mine.py", FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "known_families", lambda: {"INTERNLM2"})
    return lambda *arguments: CliRunner().invoke(command.app, ["show", "mine.py", *arguments])


def test_text_groups_keys_by_block_with_value_and_source(show):
    result = show("--set", "adam.lr=0.5")

    blocks = {block.splitlines()[0]: block.splitlines()[1:] for block in result.stdout.split("\n\n")}
    assert result.exit_code == 0
    assert result.stdout.startswith("mine.py\n")
    assert ["seq_len", "64", "mine.py"] in [line.split() for line in blocks["data"]]
    assert ["packed_length", "128", "derived"] in [line.split() for line in blocks["data"]]
    assert ["lr", "0.5", "--set"] in [line.split() for line in blocks["adam"]]
    assert "  SEQ_LEN=64 (mine.py) is ignored: a helper constant" in blocks["notes"]
    assert not any(block.startswith("cannot run") for block in blocks)


def test_json_holds_the_same_facts(show):
    facts = json.loads(
        show("--json", "--world-size", "2", "--set", "adam.lr=0.5", "--set", "data.use_shm=True").stdout
    )

    rows = {row["key"]: row for row in facts["values"]}
    assert (facts["file"], facts["world_size"]) == ("mine.py", 2)
    assert rows["adam.lr"] == {
        "key": "adam.lr",
        "value": 0.5,
        "source": "--set",
        "description": "Peak learning rate.",
    }
    assert "SEQ_LEN=64 (mine.py) is ignored: a helper constant" in facts["notes"]
    assert [one["fix"] for one in facts["problems"]] == ["--set data.use_shm=False"]


def test_what_keeps_it_from_running_is_shown_and_is_no_failure(show):
    result = show("--set", "parallel.tensor.size=2", "--set", "model_type=QWEN2")

    assert result.exit_code == 0
    tail = result.stdout.partition("cannot run yet (world size 1):\n")[2]
    assert "1. model_type='QWEN2': this model family is not supported yet" in tail
    assert "2. parallel.tensor.size=2 times parallel.pipeline.size=1 does not divide 1 rank" in tail
    assert "     to fix: change a size or the number of ranks" in tail


def test_describe_adds_what_each_key_means(show):
    described = show("--describe").stdout

    assert "Peak learning rate." in described
    assert "Peak learning rate." not in show().stdout


def test_a_mistake_is_left_to_the_command_line_to_print(show):
    result = show("--set", "adam.lrr=1")

    assert isinstance(result.exception, UserError)
    assert result.stdout == ""
