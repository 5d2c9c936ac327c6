"""Pipeline schedules on the command line."""

import json
import xml.etree.ElementTree as ET

import pytest

from evocore.cli.main import main


def answer(capsys, *arguments):
    assert main(["topology", *arguments]) == 0
    return capsys.readouterr().out


def test_a_schedule_as_text(capsys):
    assert answer(capsys, "--schedule", "1f1b", "--stages", "2", "--micro", "3").splitlines() == [
        "1F1B: 2 stages of 1 chunk, 3 micro-batches, bubble 25.0%",
        "most chunks kept at a time: 2 1",
        "F forward, B backward = I gradients of activations + W gradients of weights; F, I and W take as long",
        "",
        "stage 0  F0 F1 .. .. B0--- F2 B1--- .. B2---",
        "stage 1  .. F0 B0--- F1 B1--- F2 B2--- .. ..",
    ]


def test_chunks_of_a_stage_have_letters(capsys):
    *_, first, second = answer(capsys, "--schedule", "ZBV", "--stages", "2", "--micro", "2").splitlines()

    assert first.split() == "stage 0 F0a F1a ... F0b I0b W0b F1b I1b W1b I0a W0a ... I1a W1a".split()
    assert second.split()[:6] == "stage 1 ... F0a F0b F1a".split()


def test_json_has_what_is_drawn(capsys):
    facts = json.loads(answer(capsys, "--schedule", "interleaved", "--json"))

    assert (facts["stages"], facts["chunks"], facts["micro_batches"]) == (4, 2, 8)
    assert facts["bubble"] == pytest.approx(3 / 19)
    assert len(facts["actions"]) == 2 * 4 * 2 * 8 and facts["live_chunks"] == [11, 9, 7, 5]
    assert facts["actions"][0] == {"stage": 0, "kind": "F", "chunk": 0, "micro": 0, "start": 0.0, "end": 1.0}


def test_a_drawing_has_a_box_for_each_action(capsys, tmp_path):
    file = tmp_path / "zbh1.svg"

    assert answer(capsys, "--schedule", "ZBH1", "--stages", "3", "--micro", "4", "--svg", str(file)) == f"{file}\n"
    titles = [element.text for element in ET.parse(file).iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3 * 3 * 4
    assert titles[0] == "forward, chunk 0, micro-batch 0: 0 to 1"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--schedule", "gpipe"], "--schedule gpipe"),
        (["--schedule", "ZBV", "--chunks", "3"], "--chunks 3 with --schedule ZBV"),
        (["--schedule", "1F1B", "--svg", "/nowhere/x.svg"], "--svg /nowhere/x.svg: No such file or directory"),
        (["--world-size", "2"], "evocore topology without --config"),
    ],
)
def test_mistakes_are_told(capsys, arguments, wrong):
    assert main(["topology", *arguments]) == 2
    assert wrong in capsys.readouterr().err
