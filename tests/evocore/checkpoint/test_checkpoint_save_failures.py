"""A save that fails leaves nothing behind and harms nothing before it; old checkpoints go only when they may."""

import errno
import os
import socket
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch

from evocore.checkpoint import folder as folders
from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.contents import verify
from evocore.checkpoint.errors import SaveError
from evocore.errors import UserError


def save(checkpointer, step, value=None):
    return checkpointer.save(step, tensors={"w": torch.full((1000,), float(value or step))}, state={"step": step})


def value_of(path):
    into = {"w": torch.zeros(1000)}
    Checkpointer(path.parent).load(path, tensors=into)
    assert verify(path, hashes=True) == []
    return into["w"][0].item()


class FailsAt:
    """Stands in for a system call and fails the n-th time, as on a full disk."""

    def __init__(self, call, at):
        self.call, self.at, self.calls = call, at, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.call(*args, **kwargs)


@pytest.mark.parametrize("at", range(1, 6))
def test_a_full_disk_at_any_moment_leaves_the_last_good_checkpoint_alone(tmp_path, monkeypatch, at):
    """fsync number 1 to 5: tensors, metadata, state, manifest, working folder."""
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    save(checkpointer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsAt(os.fsync, at))
        with pytest.raises(SaveError, match="(?s)step 2 could not be saved.*No space left on device") as error:
            save(checkpointer, 2)

    assert error.value.fix.endswith(f"the last good checkpoint: {tmp_path / '1'}") and "GB are free" in str(
        error.value
    )
    assert os.listdir(tmp_path) == ["1"] and value_of(tmp_path / "1") == 1.0
    assert value_of(save(checkpointer, 2)) == 2.0


def test_a_failure_after_the_rename_is_reported_and_leaves_both(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    save(checkpointer, 1)
    monkeypatch.setattr(os, "fsync", FailsAt(os.fsync, 6))
    with pytest.raises(SaveError):
        save(checkpointer, 2)
    assert value_of(tmp_path / "1") == 1.0 and value_of(tmp_path / "2") == 2.0


@pytest.mark.parametrize("at", [1, 2])
def test_a_replacement_that_fails_puts_the_old_one_back(tmp_path, monkeypatch, at):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1, value=10)
    with monkeypatch.context() as patch:
        calls = FailsAt(Path.rename, at)
        patch.setattr(Path, "rename", lambda path, target: calls(path, target))
        with pytest.raises(SaveError):
            save(checkpointer, 1, value=20)
    assert os.listdir(tmp_path) == ["1"] and value_of(tmp_path / "1") == 10.0

    save(checkpointer, 1, value=20)
    assert os.listdir(tmp_path) == ["1"] and value_of(tmp_path / "1") == 20.0


def test_the_first_save_of_all_can_fail_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", FailsAt(os.fsync, 1))
    with pytest.raises(SaveError, match="the last good checkpoint: none yet"):
        save(Checkpointer(tmp_path / "new" / "run"), 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="Not a directory"):
        save(Checkpointer(tmp_path / "file" / "run"), 1)


def test_an_interrupt_is_passed_on_and_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(Checkpointer(tmp_path), 1)
    assert os.listdir(tmp_path) == []


def test_what_another_program_wrote_is_never_replaced(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "model_tp0_pp0.pt").write_bytes(b"theirs")
    with pytest.raises(UserError, match="not a checkpoint that evocore wrote"):
        save(Checkpointer(tmp_path), 7)
    assert (tmp_path / "7" / "model_tp0_pp0.pt").read_bytes() == b"theirs" and os.listdir(tmp_path) == ["7"]


class TestKeepLast:
    def steps(self, folder):
        return sorted(int(path.name) for path in folder.iterdir())

    def test_older_ones_go_when_the_new_one_is_whole(self, tmp_path):
        for step in range(1, 6):
            save(Checkpointer(tmp_path, keep_last=2), step)
        assert self.steps(tmp_path) == [4, 5]

    def test_none_keeps_all(self, tmp_path):
        for step in range(4):
            save(Checkpointer(tmp_path), step)
        assert self.steps(tmp_path) == [0, 1, 2, 3]

    def test_a_rolled_back_run_keeps_its_new_checkpoint_and_the_later_ones(self, tmp_path):
        for step in (10, 20, 30):
            save(Checkpointer(tmp_path), step)
        save(Checkpointer(tmp_path, keep_last=2), 15)
        assert self.steps(tmp_path) == [10, 15, 20, 30]
        save(Checkpointer(tmp_path, keep_last=1), 16)
        assert self.steps(tmp_path) == [16, 20, 30]

    def test_damaged_ones_do_not_count_and_strangers_stay(self, tmp_path):
        for step in (1, 2, 3, 4):
            save(Checkpointer(tmp_path), step)
        os.truncate(tmp_path / "4" / "state.json", 1)
        (tmp_path / "0").mkdir()
        save(Checkpointer(tmp_path, keep_last=3), 5)
        assert self.steps(tmp_path) == [0, 2, 3, 4, 5]

    def test_a_failure_to_delete_is_a_warning(self, tmp_path, monkeypatch):
        save(Checkpointer(tmp_path), 1)
        monkeypatch.setattr(folders.shutil, "rmtree", FailsAt(None, 1))
        with pytest.warns(UserWarning, match="could not be removed"):
            save(Checkpointer(tmp_path, keep_last=1), 2)
        assert [info.step for info in Checkpointer(tmp_path).candidates()] == [2]

    def test_zero_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="keep_last is 0"):
            Checkpointer(tmp_path, keep_last=0)


class TestLeftBehind:
    @pytest.fixture
    def dead(self):
        process = subprocess.Popen(["true"])
        process.wait()
        return process.pid

    def left_after_a_save(self, folder, name, age=0.0):
        path = folder / name
        path.mkdir(parents=True)
        (path / "tensors-00000-000.safetensors").write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(Checkpointer(folder), 9)
        return path.exists()

    def test_of_a_dead_writer_it_goes(self, tmp_path, dead):
        assert not self.left_after_a_save(tmp_path, f"3.tmp-{socket.gethostname()}-{dead}")

    def test_of_this_process_it_goes(self, tmp_path):
        assert not self.left_after_a_save(tmp_path, f"9.tmp-{socket.gethostname()}-{os.getpid()}")

    def test_of_a_live_writer_it_stays(self, tmp_path):
        assert self.left_after_a_save(tmp_path, f"3.tmp-{socket.gethostname()}-{os.getppid()}")

    def test_of_another_host_it_goes_after_a_day(self, tmp_path, dead):
        assert self.left_after_a_save(tmp_path / "a", f"3.tmp-elsewhere-{dead}", age=3600.0)
        assert not self.left_after_a_save(tmp_path / "b", f"3.tmp-elsewhere-{dead}", age=2 * 24 * 3600.0)

    def test_a_replacement_cut_short_between_its_renames_is_undone(self, tmp_path, dead):
        save(Checkpointer(tmp_path), 3)
        set_aside = tmp_path / f"3.old-{socket.gethostname()}-{dead}"
        (tmp_path / "3").rename(set_aside)
        save(Checkpointer(tmp_path), 4)
        assert value_of(tmp_path / "3") == 3.0 and sorted(os.listdir(tmp_path)) == ["3", "4"]

    def test_a_replacement_cut_short_after_its_renames_is_finished(self, tmp_path, dead):
        save(Checkpointer(tmp_path), 3)
        assert not self.left_after_a_save(tmp_path, f"3.old-{socket.gethostname()}-{dead}")
        assert value_of(tmp_path / "3") == 3.0
