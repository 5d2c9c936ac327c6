"""A checkpoint may come from a stranger: nothing in it is executed, and nothing outside it is read."""

import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.compare import compare
from evocore.checkpoint.contents import read_contents, verify
from evocore.checkpoint.errors import DamagedCheckpointError
from evocore.cli.checkpoint import app

DATA = "tensors-00000-000.safetensors"
FILES = [DATA, "metadata.json", "state.json", "config.json", "manifest.json"]
# What torch.save, DCP and other trainers would read, should anybody ever fall back to them.
PLANTED = [".metadata", "__0_0.distcp", "model.pt", "state.pt", "optimizer.pt", "context.pt", "pytorch_model.bin"]


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


@pytest.fixture
def path(tmp_path):
    saved = {"w": torch.arange(6.0).view(2, 3), "n": torch.arange(4)}
    return Checkpointer(tmp_path / "run").save(1, tensors=saved, state={"step": 1}, config={"lr": 0.1})


def wanted():
    return {"w": torch.zeros(2, 3), "n": torch.zeros(4, dtype=torch.int64)}


def alter(path, name, data):
    """Replace a file and its entry in the manifest, as a stranger would."""
    (path / name).write_bytes(data)
    if name != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))


def alter_json(path, name, change):
    value = json.loads((path / name).read_text())
    change(value)
    alter(path, name, json.dumps(value).encode())


def through_every_door(path):
    """Errors are fine, anything but a UserError is not."""
    for door in (
        lambda: read_contents(path),
        lambda: compare(path, path),
        lambda: Checkpointer(path.parent).load(path, tensors=wanted()),
    ):
        try:
            door()
        except DamagedCheckpointError:
            pass
    Checkpointer(path.parent).load_latest(tensors=wanted())
    for arguments in (["ls", str(path.parent)], ["verify", str(path)], ["diff", str(path), str(path)]):
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, DamagedCheckpointError | SystemExit)
    verify(path, hashes=True)


@pytest.mark.parametrize("form", ["pickle", "torch.save"])
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file_is_never_executed(path, tmp_path, monkeypatch, name, form):
    sentinel = str(tmp_path / "executed")
    bomb = tmp_path / "bomb"
    bomb.write_bytes(pickle.dumps(Payload(sentinel)))
    if form == "torch.save":
        torch.save(Payload(sentinel), bomb)
    alter(path, name, bomb.read_bytes())
    for planted in PLANTED:
        (path / planted).write_bytes(bomb.read_bytes())

    through_every_door(path)

    assert not os.path.exists(sentinel)
    with pytest.raises(DamagedCheckpointError):
        Checkpointer(path.parent).load(path, tensors=wanted())
    assert Checkpointer(path.parent).load_latest(tensors=wanted()).info is None
    torch.load(bomb, weights_only=False) if form == "torch.save" else pickle.loads(bomb.read_bytes())
    assert os.path.exists(sentinel)  # the bomb was live


def test_pickles_beside_a_good_checkpoint_change_nothing(path, tmp_path):
    sentinel = str(tmp_path / "executed")
    for planted in PLANTED:
        (path / planted).write_bytes(pickle.dumps(Payload(sentinel)))
    into = wanted()
    assert Checkpointer(path.parent).load(path, tensors=into) == {"step": 1}
    assert torch.equal(into["n"], torch.arange(4)) and not os.path.exists(sentinel)


@pytest.mark.parametrize("escape", ["../outside.safetensors", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", ""])
@pytest.mark.parametrize("place", ["manifest", "metadata"])
def test_a_name_that_leads_out_of_the_folder_is_refused(path, escape, place):
    save_file({"w": torch.ones(2, 3)}, path.parent / "outside.safetensors")
    if place == "manifest":
        alter_json(path, "manifest.json", lambda value: value["files"].update({escape: value["files"][DATA]}))
    else:
        alter_json(path, "metadata.json", lambda value: value["tensors"]["w"]["chunks"][0].update(file=escape))

    with pytest.raises(DamagedCheckpointError, match=f"{place}.json"):
        Checkpointer(path.parent).load(path, tensors=wanted())


def test_a_file_that_the_manifest_does_not_list_is_not_read(path):
    save_file({"w": torch.ones(2, 3)}, path / "extra.safetensors")
    alter_json(
        path, "metadata.json", lambda value: value["tensors"]["w"]["chunks"][0].update(file="extra.safetensors")
    )
    with pytest.raises(DamagedCheckpointError, match="which the manifest does not list"):
        read_contents(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.update(dtype="F31"), "unknown dtype"),
        (lambda w: w.update(shape=[2, 4]), "do not add up"),
        (lambda w: w.update(shape=[2]), "another number of dimensions"),
        (lambda w: w["chunks"][0].update(offsets=[1, 0]), "beyond its tensor"),
        (lambda w: w["chunks"][0].update(offsets=[-1, 0]), "greater than or equal to 0"),
        (lambda w: w.update(chunks=[]), "do not add up"),
        (lambda w: w.update(shape="2,3"), "valid array"),
        (lambda w: w.update(shape=[2, 1 << 64]), "less than 9223372036854775808"),
        (lambda w: w.pop("chunks"), "Field required"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(path, change, told):
    alter_json(path, "metadata.json", lambda value: change(value["tensors"]["w"]))
    with pytest.raises(DamagedCheckpointError, match=told):
        read_contents(path)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [(torch.zeros(3, 2), "3, 2"), (torch.zeros(2, 3).int(), "torch.int32"), (None, "w")],
)
def test_a_tensor_file_that_contradicts_the_description_is_refused(path, tensor, told):
    found = load_file(path / DATA)
    found = {name: value for name, value in (found | {"w": tensor}).items() if value is not None}
    save_file(found, path / "new")
    alter(path, DATA, (path / "new").read_bytes())

    with pytest.raises(DamagedCheckpointError, match=told):
        Checkpointer(path.parent).load(path, tensors=wanted())
    with pytest.raises(DamagedCheckpointError, match=told):
        compare(path, path)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[1]", b"1e", b'"\xff"', b"", b"9" * 10_000])
@pytest.mark.parametrize("name", ["state.json", "metadata.json", "manifest.json"])
def test_hostile_json_is_damage_and_no_crash(path, name, text):
    alter(path, name, text)
    through_every_door(path)
    with pytest.raises(DamagedCheckpointError):
        read_contents(path)
