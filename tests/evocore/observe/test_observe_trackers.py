"""What observers leave on the disk: JSON lines, log, TensorBoard events."""

import io
import json

import pytest
from rich.console import Console

from evocore.observe.progress import Bar, Log
from evocore.observe.trackers import JSONLines, TensorBoard
from evocore.training.observer import RunStart

STEP = {"loss": 2.5, "lr": 1e-3, "grad_norm": float("inf"), "mfu": None, "tgs/tgs_SMA": 100.0, "micro_num": 4}


def watch(observer, folder, steps, *, first=1, tensorboard=None):
    observer.on_start(RunStart(folder, first, 10, ["a fact"], tensorboard))
    for step in steps:
        observer.on_step({"step": step, **STEP})
    observer.on_validation(steps[-1], {"held_out": 3.25})
    observer.on_message("checkpoint saved")
    observer.on_end(steps[-1], "finished")


def test_metrics_are_json_lines_with_words_for_what_json_lacks(tmp_path):
    watch(JSONLines(), tmp_path, [1, 2])

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert lines[0]["grad_norm"] == "inf" and lines[0]["mfu"] is None and lines[0]["loss"] == 2.5
    assert lines[2] == {"step": 2, "valid/held_out": 3.25}


def test_resumed_metrics_drop_steps_that_are_made_again_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')

    watch(JSONLines(), tmp_path, [2, 3], first=2)

    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 3]


def test_log_has_one_line_of_keys_and_values_per_step(tmp_path, capsys):
    watch(Log(echo=True), tmp_path, [1])

    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[:2] == ["a fact", f"run folder {tmp_path}"]
    assert lines[2].startswith("step=1 loss=2.5 lr=0.001 grad_norm=inf mfu=None")
    assert lines[3:] == ["step=1 valid/held_out=3.25", "checkpoint saved", "finished after step 1"]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.splitlines() == lines


def test_tensorboard_holds_every_number_of_every_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch(TensorBoard(), tmp_path, [1, 2], tensorboard=tmp_path / "events")

    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("valid/held_out")] == [(2, 3.25)]
    assert "mfu" not in events.Tags()["scalars"]


def test_tensorboard_writes_nothing_if_none_is_wanted(tmp_path):
    watch(TensorBoard(), tmp_path, [1])
    assert list(tmp_path.iterdir()) == []


def test_bar_shows_what_people_watch(tmp_path):
    screen = io.StringIO()
    watch(Bar(Console(file=screen, force_terminal=True, width=140)), tmp_path, [1, 2])

    shown = screen.getvalue()
    assert "2/10" in shown and "loss 2.5000" in shown and "100 tokens/s" in shown
    assert "step 2: held_out loss 3.2500" in shown and "checkpoint saved" in shown
