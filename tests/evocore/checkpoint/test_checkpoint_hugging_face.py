"""Weights of Hugging Face: every rank of every layout reads its own bytes; whatever is wrong is told, and not run."""

import json
import os
import pickle

import foreign_models as tiny
import pytest
import torch
from foreign_models import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evocore.checkpoint.boxes import Boxes
from evocore.checkpoint.foreign.fill import fill, row_runs
from evocore.checkpoint.foreign.safetensors_file import SafetensorsFile
from evocore.checkpoint.foreign.source import Slab, read_slabs
from evocore.checkpoint.hugging_face.load import load_hugging_face
from evocore.nn.weight_map import to_ours, to_theirs
from evocore.parallel.layout import Layout
from evocore.parallel.placement import Box
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.foreign import load_foreign, model_targets, open_foreign
from evocore.training.on_paper import RankOnPaper

FUSED = dict(mlp_layer_fusion=True)
EXPERTS = dict(num_experts=4, top_k=2, moe_type="Dropless", moe_layer_kwargs=dict(drop_tokens=False))
ISP = dict(tensor=dict(size=2, mode="isp"))
LAYOUTS = {
    "alone": (1, "LLAMA2", {}, {}),
    "mtp4": (4, "LLAMA2", FUSED, dict(tensor=dict(size=4, mode="mtp"))),
    "fsp2-zero2": (4, "INTERNLM2", {}, dict(tensor=dict(size=2, mode="fsp"), zero1=dict(size=2))),
    "isp2-wp4-zero": (4, "INTERNLM2", FUSED, ISP | dict(weight=dict(size=4))),
    "isp2-wp2-zero2": (4, "LLAMA2", {}, ISP | dict(weight=dict(size=2), zero1=dict(size=2))),
    "fsdp4": (4, "LLAMA2", FUSED, dict(fsdp=dict(enable=True))),
    "fsdp2-msp2": (4, "INTERNLM2", {}, dict(tensor=dict(size=2, mode="msp"), fsdp=dict(enable=True))),
    "pipeline2-zbv": (2, "LLAMA2", dict(num_chunks=2), dict(pipeline=dict(size=2, mode="ZBV"))),
    "tied-pipeline2": (2, "QWEN2", dict(tie_word_embeddings=True), dict(pipeline=dict(size=2, mode="1F1B"))),
    "experts2": (4, "MIXTRALMOE", EXPERTS, dict(expert=dict(size=2))),
    "experts2-weights2": (4, "MIXTRALMOE", EXPERTS, ISP | dict(weight=dict(size=2), expert_weight=dict(size=2))),
}


def plan_of(layout, rank):
    world, model_type, model, parallel = LAYOUTS[layout]
    data = dict(type="random", seq_len=16, micro_bsz=1, micro_num=4, total_steps=1)
    config = tiny.config_of(model_type, model=model, data=data, parallel=parallel)
    return config, make_plan(config, load_plugins(), layout=Layout.of(config, world, rank), backend="cpu")


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def source_and_values(layout):
    world, model_type, model, parallel = LAYOUTS[layout]
    family, whole, shapes, _ = tiny.family_and_model(model_type, **model)
    match = family.weights(whole).match(shapes)
    ours = tiny.values_of(shapes)
    return match, to_theirs(match, ours), ours


def test_a_rank_gets_its_part_and_reads_no_byte_more(layout):
    match, theirs, ours = source_and_values(layout)
    for rank in range(LAYOUTS[layout][0]):
        _, plan = plan_of(layout, rank)
        source = tiny.InMemory(theirs)
        held = {name: torch.full(s.placement.local_shape, -1.0) for name, s in plan.sharings.items()}
        fill(match, source, {name: Boxes.of(plan.sharings[name].placement, held[name]) for name in held})

        for name, sharing in plan.sharings.items():
            padding = sharing.placement.take(torch.full(ours[name].shape, 1.0)) == 0
            expected = sharing.placement.take(ours[name]).masked_fill(padding, -1.0)
            assert torch.equal(held[name], expected), (rank, name)
        assert source.bytes_read == 4 * sum(sharing.placement.numel for sharing in plan.sharings.values())


def test_optimizer_shards_read_every_byte_once_between_them():
    match, theirs, _ = source_and_values("isp2-wp2-zero2")
    total = 0
    for rank in range(4):
        config, plan = plan_of("isp2-wp2-zero2", rank)
        source = tiny.InMemory(theirs)
        targets = model_targets(RankOnPaper(config, plan).optimizer.tensors())
        fill(match, source, targets)
        parts = [
            part for box in targets.values() for part in (box.parts.values() if isinstance(box, Boxes) else [box])
        ]
        assert source.bytes_read == 4 * sum(part.numel() for part in parts)
        total += source.bytes_read
    whole = 4 * sum(tensor.numel() for tensor in theirs.values())
    assert whole <= total < 1.1 * whole  # norms are small, and each weight rank has them whole


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_boxes_are_few_runs_of_rows(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    offsets = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.integers(1, size - start)) for size, start in zip(shape, offsets, strict=True))
    numbers = torch.arange(torch.Size(shape[:-1] or shape).numel()).view(shape[:-1] or shape)
    box = Box(offsets, sizes)
    rows = Box(offsets[:-1] or offsets, sizes[:-1] or sizes).of(numbers).flatten().tolist()

    runs = list(row_runs(shape, box))

    assert [row for run in runs for row in run] == rows
    assert all(before.stop != after.start for before, after in zip(runs, runs[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_lies_in_several_places_is_read_as_one(data):
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    whole = torch.arange(rows * columns).view(rows, columns)
    cut, across = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    slabs = [
        Slab(range(*r), range(*c), lambda rr, cc, part=whole[r[0] : r[1], c[0] : c[1]]: part[list(rr)][:, list(cc)])
        for r in ((0, cut), (cut, rows))
        for c in ((0, across), (across, columns))
        if r[0] < r[1] and c[0] < c[1]
    ]
    start, step = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(1, 3))
    wanted = range(start, data.draw(st.integers(start + 1, rows)), step)
    first = data.draw(st.integers(0, columns - 1))
    seen = range(first, data.draw(st.integers(first + 1, columns)))

    found = read_slabs(slabs, wanted, seen, whole.dtype)

    assert torch.equal(found, whole[list(wanted)][:, list(seen)])


def test_a_rectangle_of_a_file_is_read_by_its_bytes(tmp_path):
    tensors = {"a": torch.randn(7, 5).bfloat16(), "b": torch.randn(6), "empty": torch.empty(0, 5)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")

    assert torch.equal(file.read("a", range(1, 7, 2), range(2, 5)), tensors["a"][1:7:2, 2:5])
    assert file.bytes_read == 3 * 3 * 2
    assert torch.equal(file.read("b", range(2, 6), range(1)), tensors["b"][2:, None])
    assert file.bytes_read == 3 * 3 * 2 + 4 * 4
    assert file.read("empty", range(0), range(5)).shape == (0, 5)


@pytest.mark.parametrize("form", ["one file", "several files", "bin", "several bins"])
def test_a_folder_fills_a_model_whatever_files_it_has(form, tmp_path):
    theirs = tiny.save_llama(tmp_path, shard="20KB" if "several" in form else "5GB")
    if "bin" in form:
        for file in list(tmp_path.glob("*.safetensors")):
            name = "pytorch_model.bin" if file.name == "model.safetensors" else file.with_suffix(".bin").name
            torch.save(load_file(file), tmp_path / name)
            file.unlink()
        index = tmp_path / "model.safetensors.index.json"
        if index.exists():
            text = index.read_text().replace(".safetensors", ".bin")
            (tmp_path / "pytorch_model.bin.index.json").write_text(text)
            index.unlink()
    family, model, shapes, _ = tiny.family_and_model(mlp_layer_fusion=True, qk_interleaved=True)
    model.to_empty(device="cpu")

    load_hugging_face(tmp_path, family, model)

    expected = to_ours(family.weights(model).match(shapes), theirs)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


def test_a_head_that_they_tie_is_read_where_ours_is_its_own(tmp_path):
    theirs = tiny.save_llama(tmp_path, tie_word_embeddings=True)
    family, model, _, _ = tiny.family_and_model()
    load_hugging_face(tmp_path, family, model.to_empty(device="cpu"))
    assert torch.equal(model.output.weight, theirs["model.embed_tokens.weight"])


def test_a_head_that_should_be_there_is_missed(tmp_path):
    edited(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    refused(lambda: start(tmp_path), "lm_head.weight [64, 32] is missing")


# --- what can be wrong --------------------------------------------------------------------------------------------


def start(tmp_path, **more):
    """Open what ``load_ckpt_info`` names as the start of a run does."""
    config = tiny.config_of(path=tmp_path, **more)
    plan = make_plan(config, load_plugins(), backend="cpu")
    return open_foreign(config, plan)


def test_another_size_names_the_first_five_differences(tmp_path):
    tiny.save_llama(tmp_path, hidden_size=48)
    error = refused(
        lambda: start(tmp_path),
        f"the Hugging Face checkpoint {tmp_path} does not fit the model",
        "model.embed_tokens.weight is [64, 48] there, [64, 32] in the model",
        "set model_type and the model block",
    )
    assert error.wrong.count(" is [") == 5 and "and 34 more" in error.wrong


def test_another_architecture_names_what_is_missing_and_what_is_not_known(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=64)).save_pretrained(
        tmp_path
    )
    refused(lambda: start(tmp_path), "model.embed_tokens.weight [64, 32] is missing")


def edited(tmp_path, change):
    tiny.save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight [32] is missing"),
        (lambda t: t.update({"extra": torch.ones(2)}), "extra [2] is not part of the model"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
            "model.norm.weight is F8_E4M3 there, not a floating-point type that can be trained",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}),
            "lm_head.weight is I8 there, not a floating-point type",
        ),
    ],
    ids=["missing", "extra", "float8", "int8"],
)
def test_missing_extra_and_quantised_tensors(change, told, tmp_path):
    edited(tmp_path, change)
    refused(lambda: start(tmp_path), told)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "plain pickle"])
def test_a_pickle_is_never_run(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {"model.norm.weight": torch.ones(32), "evil": Evil()}
    if archive:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"evil": Evil()}, protocol=2))

    refused(lambda: start(tmp_path), "pytorch_model.bin is not read", "could run", "get the model as safetensors")

    assert not (tmp_path / "executed").exists()


def test_an_index_that_names_a_file_that_is_not_there(tmp_path):
    tiny.save_llama(tmp_path, shard="20KB")
    (tmp_path / "model-00002-of-00008.safetensors").unlink(missing_ok=True)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    refused(lambda: start(tmp_path), "model.safetensors.index.json says that", "which is not there", "download")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd"])
def test_an_index_stays_in_its_folder(name, tmp_path):
    tiny.save_llama(tmp_path, shard="20KB")
    index = tmp_path / "model.safetensors.index.json"
    tiny.edit_json(index, lambda value: value["weight_map"].update({"model.norm.weight": name}))
    refused(lambda: start(tmp_path), f"is in {name!r}, which is not there")


def test_a_file_that_was_cut_short(tmp_path):
    tiny.save_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(lambda: start(tmp_path), "model.safetensors cannot be read as a safetensors file")


def test_a_folder_that_is_none(tmp_path):
    refused(lambda: start(tmp_path / "nowhere"), "there is no config.json", "the folder of a downloaded model")
    tiny.save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(lambda: start(tmp_path), "there are no weights in")


def sentencepiece_model(pieces):
    """Only as much of one as says how many pieces it has."""
    piece = b"\x0a\x03\x0a\x01a"  # field 1: a message with the text "a"
    return piece * pieces + b"\x12\x02\x08\x01"


TOKENIZERS = {
    "tokenizer.json": json.dumps(
        {"model": {"vocab": {"a": 0, "b": 63}}, "added_tokens": [{"id": 64, "content": "x"}]}
    ),
    "added_tokens.json": json.dumps({"<x>": 64}),
    "tokenizer.model": sentencepiece_model(65),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_with_more_tokens_than_the_vocabulary(name, tmp_path):
    tiny.save_llama(tmp_path)
    content = TOKENIZERS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: start(tmp_path), f"{name} has token ids up to 64, the model's vocabulary ends at 63")


def test_a_tokenizer_that_fits_is_counted_right(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    tiny.save_llama(tmp_path)
    (tmp_path / "corpus").write_text("a bc abc\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=10, minloglevel=2
    )
    start(tmp_path)  # 10 pieces, and everything else that such a file holds
    refused(lambda: start(tmp_path, model=dict(vocab_size=9)), "tokenizer.model has token ids up to 9")


def test_values_beyond_float16_are_told(tmp_path):
    edited(tmp_path, lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    config = tiny.config_of(path=tmp_path, model=dict(dtype="torch.float16"))
    plan = make_plan(config, load_plugins(), backend="cpu")

    class Held:
        def tensors(self):
            return {f"master.{name}": torch.empty(s.placement.shape) for name, s in plan.sharings.items()}

    refused(lambda: load_foreign(config, plan, Held(), lambda text: [text]), "norm.weight up to 1e+06", "float16")


def test_one_ranks_error_is_everybodys(tmp_path):
    config = tiny.config_of(path=tmp_path)
    plan = make_plan(config, load_plugins(), backend="cpu")
    told = []
    refused(lambda: load_foreign(config, plan, None, lambda text: told.append(text) or [text]), "no config.json")
    tiny.save_llama(tmp_path)
    optimizer = type("Held", (), {"tensors": lambda self: {}})()
    refused(lambda: load_foreign(config, plan, optimizer, lambda text: ["", told[0]]), "no config.json")
