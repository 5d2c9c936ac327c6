"""What was cut short or altered is passed over for the one before it, and the caller is told."""

import json
import os
import shutil

import pytest
import torch

from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.contents import verify
from evocore.checkpoint.errors import DamagedCheckpointError

DATA = "tensors-00000-000.safetensors"


def tensors(value=0.0):
    return {"w": torch.full((50,), value), "b": torch.full((3,), value).half()}


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / "run")
    for step in (100, 200, 300):
        checkpointer.save(step, tensors=tensors(float(step)), state={"step": step}, config={"lr": 0.1})
    return checkpointer


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def put_a_pipe_in_its_place(path):
    path.unlink()
    os.mkfifo(path)


CUT = [
    *((truncate, name) for name in (DATA, "metadata.json", "state.json", "config.json", "manifest.json")),
    *((os.unlink, name) for name in (DATA, "metadata.json", "state.json", "manifest.json")),
    *((put_a_pipe_in_its_place, name) for name in (DATA, "manifest.json")),
]
ALTERED = [(flip, name) for name in (DATA, "metadata.json", "state.json", "config.json")]


@pytest.mark.parametrize(("damage", "name"), CUT)
def test_what_sizes_tell_is_passed_over_without_reading_it(checkpointer, damage, name):
    damage(checkpointer.folder / "300" / name)

    newest, passed_over = checkpointer.latest()

    assert newest.step == 200 and newest.complete
    assert [info.step for info in passed_over] == [300] and name in passed_over[0].problem
    assert name in verify(checkpointer.folder / "300", hashes=False)[0]


@pytest.mark.parametrize(("damage", "name"), CUT + ALTERED)
def test_any_damage_is_passed_over_when_loading_and_the_caller_is_told(checkpointer, damage, name):
    damage(checkpointer.folder / "300" / name)
    into = tensors()

    found = checkpointer.load_latest(tensors=into)

    assert found.info.step == 200 and found.state == {"step": 200} and torch.equal(into["w"], tensors(200.0)["w"])
    assert [(info.step, info.complete) for info in found.passed_over] == [(300, False)]
    assert name in found.passed_over[0].problem
    with pytest.raises(DamagedCheckpointError, match=name):
        checkpointer.load(checkpointer.folder / "300", tensors=tensors())
    assert name in verify(checkpointer.folder / "300", hashes=True)[0]


def test_several_damaged_ones_are_passed_over_in_order(checkpointer):
    flip(checkpointer.folder / "300" / DATA)
    truncate(checkpointer.folder / "200" / DATA)
    found = checkpointer.load_latest(tensors=tensors())
    assert found.info.step == 100 and [info.step for info in found.passed_over] == [300, 200]


def test_nothing_good_left(checkpointer):
    for step in ("100", "200", "300"):
        os.unlink(checkpointer.folder / step / "manifest.json")
    found = checkpointer.load_latest(tensors=tensors())
    assert found.info is None and found.state == {} and len(found.passed_over) == 3
    assert checkpointer.latest()[0] is None


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path):
    checkpointer = Checkpointer(tmp_path / "none")
    assert checkpointer.candidates() == [] and checkpointer.latest() == (None, [])
    assert checkpointer.load_latest(tensors=tensors()).info is None


def test_only_step_numbers_are_candidates(checkpointer):
    for name in ("0300", "-1", "400.tmp-host-1", "snapshot", "²", "5.0"):
        shutil.copytree(checkpointer.folder / "300", checkpointer.folder / name)
    (checkpointer.folder / "500").write_text("a file")
    assert [info.step for info in checkpointer.candidates()] == [300, 200, 100]


def test_a_copy_under_another_step_is_not_taken_for_that_step(checkpointer):
    shutil.copytree(checkpointer.folder / "100", checkpointer.folder / "400")
    newest, passed_over = checkpointer.latest()
    assert newest.step == 300 and passed_over[0].problem == "its manifest is of step 100"


def test_a_manifest_of_something_else(checkpointer):
    manifest = checkpointer.folder / "300" / "manifest.json"
    manifest.write_text(json.dumps({"format": "another", "version": 1}))
    assert "'another'" in checkpointer.candidates()[0].problem
