"""One process: every bit comes back, and nothing loads that does not fit."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evocore.checkpoint import dcp_write
from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.contents import DTYPE_BYTES, read_contents, verify
from evocore.checkpoint.manifest import read_manifest
from evocore.checkpoint.tensor_files import DTYPES
from evocore.errors import UserError

LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.t() if tensor.dim() == 2 else tensor,
    "strided": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2] if tensor.dim() else tensor,
    "offset": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()])[tensor.numel() :].view(tensor.shape),
}


def bits(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def random_bits(dtype, shape, seed):
    """Every bit pattern: NaN with payloads, denormals, negative zero."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


tensors = st.builds(
    lambda dtype, shape, layout, seed: LAYOUTS[layout](random_bits(dtype, shape, seed)),
    st.sampled_from(sorted(DTYPES.values(), key=str)),
    st.sampled_from([(), (0,), (3, 0), (1,), (7,), (3, 4), (2, 3, 5)]),
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 2**31),
)


@given(saved=st.dictionaries(st.text(min_size=1).filter(lambda name: name != "__metadata__"), tensors, max_size=6))
@settings(max_examples=30, deadline=None)
def test_every_bit_of_every_dtype_shape_and_layout_comes_back(tmp_path_factory, saved):
    checkpointer = Checkpointer(tmp_path_factory.mktemp("run"))
    path = checkpointer.save(1, tensors=saved, state={})
    into = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}

    checkpointer.load(path, tensors=into)

    assert all(torch.equal(bits(into[name]), bits(tensor)) for name, tensor in saved.items())
    contents = read_contents(path)
    assert {name: info.shape for name, info in contents.tensors.items()} == {n: t.shape for n, t in saved.items()}
    assert verify(path, hashes=True) == []


def test_tied_and_aliased_tensors_and_parameters(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    saved = {"tied.a": base, "tied.b": base, "view": base[1:], "parameter": parameter}
    path = Checkpointer(tmp_path).save(1, tensors=saved, state={})

    whole = torch.zeros(3, 4)
    target = torch.nn.Parameter(torch.zeros(4, 3))
    into = {"tied.a": whole, "tied.b": whole, "view": torch.zeros(2, 4), "parameter": target}
    Checkpointer(tmp_path).load(path, tensors=into)

    assert torch.equal(whole, base) and torch.equal(into["view"], base[1:]) and torch.equal(target, parameter)
    assert target.requires_grad and target.grad_fn is None and target.is_leaf


def test_loads_into_a_tensor_that_is_not_contiguous(tmp_path):
    weight = torch.randn(4, 3)
    path = Checkpointer(tmp_path).save(1, tensors={"w": weight}, state={})
    storage = torch.zeros(3, 4)
    Checkpointer(tmp_path).load(path, tensors={"w": storage.t()})
    assert torch.equal(storage, weight.t())


def test_dtype_sizes_and_names_agree_with_torch():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == DTYPE_BYTES


def test_whole_tensors_are_a_plain_safetensors_file(tmp_path):
    saved = {"w": torch.randn(3, 5), "b": torch.randn(5).bfloat16(), "flag": torch.tensor([True, False, True])}
    path = Checkpointer(tmp_path).save(1, tensors=saved, state={})
    found = load_file(path / "tensors-00000-000.safetensors")
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)


def test_a_large_shard_is_split_into_files_that_together_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dcp_write, "FILE_BYTES", 1000)
    saved = {f"w{index}": torch.full((100,), float(index)) for index in range(5)} | {"large": torch.randn(999)}
    path = Checkpointer(tmp_path).save(1, tensors=saved, state={})

    sizes = {name: len(load_file(path / name)) for name in read_manifest(path).files if name.startswith("tensors-")}
    assert sum(sizes.values()) == 6 and len(sizes) == 4
    into = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    Checkpointer(tmp_path).load(path, tensors=into)
    assert all(torch.equal(into[name], saved[name]) for name in saved)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(state=st.dictionaries(st.text(), json_values, max_size=4), config=json_values)
@settings(max_examples=15, deadline=None)
def test_state_and_config_come_back_as_they_were(tmp_path_factory, state, config):
    checkpointer = Checkpointer(tmp_path_factory.mktemp("run"))
    path = checkpointer.save(3, tensors={}, state=state, config=config)
    assert checkpointer.load(path, tensors={}) == state
    assert read_contents(path).config == config and (path / "config.json").exists() == (config is not None)


def test_state_keeps_infinity_and_nan(tmp_path):
    path = Checkpointer(tmp_path).save(3, tensors={}, state={"best": math.inf, "loss": math.nan})
    state = Checkpointer(tmp_path).load(path, tensors={})
    assert state["best"] == math.inf and math.isnan(state["loss"])


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"a": {"b": (1, 2)}}, r"state\['a'\]\['b'\] is a tuple"),
        ({"a": [{1: 2}]}, r"state\['a'\]\[0\] has the key 1, a int"),
        ({"a": torch.ones(1)}, r"state\['a'\] is a Tensor"),
        ({"a": torch.float32}, r"state\['a'\] is a dtype"),
    ],
)
def test_state_that_would_not_come_back_is_refused(tmp_path, state, told):
    with pytest.raises(UserError, match=told):
        Checkpointer(tmp_path).save(1, tensors={}, state=state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2, 2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(2, device="meta"), "meta device"),
        (2.0, "is not one"),
    ],
)
def test_tensors_that_cannot_be_kept_are_refused_by_name(tmp_path, tensor, told):
    with pytest.raises(UserError, match=f"'the.name'.*{told}"):
        Checkpointer(tmp_path).save(1, tensors={"fine": torch.ones(1), "the.name": tensor}, state={})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_says_who_wrote_what(tmp_path):
    path = Checkpointer(f"local:{tmp_path}").save(40, tensors={"w": torch.ones(3)}, state={"step": 40})
    manifest = read_manifest(path)
    assert path == tmp_path / "40" and manifest.step == 40 and manifest.world_size == 1
    assert manifest.torch == torch.__version__
    assert manifest.files.keys() == {"tensors-00000-000.safetensors", "metadata.json", "state.json"}
    assert manifest.bytes == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.json")


class TestStrictness:
    @pytest.fixture
    def path(self, tmp_path):
        saved = {f"w{index}": torch.ones(2, 3) for index in range(8)}
        return Checkpointer(tmp_path).save(1, tensors=saved, state={"step": 1})

    def load(self, path, tensors, **more):
        return Checkpointer(path.parent).load(path, tensors=tensors, **more)

    def test_the_first_five_differences_are_named(self, path):
        wanted = {f"w{index}": torch.zeros(2, 3) for index in range(4)}
        wanted |= {"w0": torch.zeros(3, 2), "w1": torch.zeros(2, 3).half(), "new": torch.zeros(1)}
        wanted |= {"w2": torch.zeros(2, 3, device="meta"), "w3": None}
        with pytest.raises(UserError) as error:
            self.load(path, wanted)
        assert error.value.wrong == (
            f"checkpoint {path} does not fit: new is not in the checkpoint; "
            "w0 has shape [2, 3] in the checkpoint, not [3, 2]; "
            "w1 is torch.float32 in the checkpoint, not torch.float16; "
            "w2 is to be loaded into a tensor on the meta device; "
            "w3 is to be loaded into a NoneType, which is not a tensor; and 4 more"
        )

    def test_what_nobody_reads_is_an_error_unless_it_is_skipped(self, path):
        wanted = {"w0": torch.zeros(2, 3), "w1": torch.zeros(2, 3)}
        with pytest.raises(UserError, match="(w[3-7] is only in the checkpoint(; )?){5}\n"):
            self.load(path, wanted, skip=["w2"])
        assert torch.equal(wanted["w0"], torch.zeros(2, 3))

        assert self.load(path, wanted, skip=["w[2-7]"]) == {"step": 1}
        assert torch.equal(wanted["w0"], torch.ones(2, 3))

    def test_skipping_does_not_excuse_what_is_missing(self, path):
        with pytest.raises(UserError, match="other is not in the checkpoint"):
            self.load(path, {"other": torch.zeros(1)}, skip=["*"])


@pytest.mark.parametrize("folder", ["boto3:s3://bucket.example/run", "oss2:ali://b/run", "a:b"])
def test_an_unknown_storage_prefix_is_refused(folder):
    with pytest.raises(UserError, match="storage prefix") as error:
        Checkpointer(folder)
    assert repr(folder) in error.value.wrong and "local:PATH" in error.value.expected


def test_a_colon_further_down_is_a_name_like_any_other(tmp_path):
    assert Checkpointer(f"{tmp_path}/a:b").folder == tmp_path / "a:b"
    assert Checkpointer(f"local:{tmp_path}/a:b").folder == tmp_path / "a:b"


def test_a_newer_format_is_refused_by_number(tmp_path):
    path = Checkpointer(tmp_path).save(1, tensors={}, state={})
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 2, "files": "of another shape"}))
    with pytest.raises(UserError, match="format version 2"):
        Checkpointer(tmp_path).load(path, tensors={})
    assert "format version 2" in Checkpointer(tmp_path).candidates()[0].problem


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint folder"):
        Checkpointer(tmp_path).load(tmp_path / "9", tensors={})
