"""``evocore convert``: there and back through the command line, and what it must never do to what is there."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evocore.cli.main import main

COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=None,
    bos_token_id=7,
)
MODELS = {
    "llama": dict(tie_word_embeddings=False),
    "qwen2": dict(tie_word_embeddings=True),
    "mixtral": dict(num_local_experts=4),
}


def save(folder, model_type="llama", dtype=torch.float32, shard="5GB", **more):
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(COMMON | MODELS[model_type] | more))
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    return folder


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def run(capsys, *arguments):
    code = main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("model_type", "dtype"), [*((name, torch.float32) for name in MODELS), ("llama", torch.bfloat16)], ids=str
)
def test_there_and_back_every_bit_is_kept_and_transformers_loads_it(model_type, dtype, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    source = save(tmp_path / "source", model_type, dtype, shard="30KB")

    assert run(capsys, "hf-to-evocore", source, tmp_path / "own")[0] == 0
    assert main(["checkpoint", "verify", str(tmp_path / "own")]) == 0
    capsys.readouterr()
    code, out, _ = run(
        capsys, "evocore-to-hf", tmp_path / "own", tmp_path / "back", "--max-shard-size", "30KB", "--json"
    )

    before, after = weights(source), weights(tmp_path / "back")
    assert code == 0 and json.loads(out)["bytes_read"] == sum(4 * tensor.numel() for tensor in before.values())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == dtype for name in before)
    shards = list((tmp_path / "back").glob("model-*.safetensors"))
    assert len(shards) > 1 and all(file.stat().st_size < 33_000 for file in shards)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    assert (tmp_path / "back" / "generation_config.json").exists()
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())["bos_token_id"] == 7
    )  # which we have no use for
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_internevo_there_and_back(tmp_path, capsys):
    source = save(tmp_path / "source")
    for command in (
        ["hf-to-evocore", source, tmp_path / "own"],
        ["evocore-to-internevo", tmp_path / "own", tmp_path / "internevo", "--tensor", 2, "--pipeline", 2],
        ["internevo-to-evocore", tmp_path / "internevo", tmp_path / "again", "--model-type", "LLAMA2"],
        ["evocore-to-hf", tmp_path / "again", tmp_path / "back", "--dtype", "float32", "--like", source],
    ):
        assert run(capsys, *command)[0] == 0, command

    before, after = weights(source), weights(tmp_path / "back")
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert sorted(file.name for file in (tmp_path / "internevo").iterdir()) == [
        "0.step",
        "model_config.pt",
        *(f"model_tp{tp}_pp{pp}.pt" for tp in range(2) for pp in range(2)),
    ]


REFUSED = {
    "no such folder": (["hf-to-evocore", "nowhere", "new"], "there is no config.json in nowhere"),
    "an unknown family": (["hf-to-evocore", "alien", "new"], "model_type = 'alien', which no model family reads"),
    "a long tokenizer": (["hf-to-evocore", "wordy", "new"], "tokenizer.json has token ids up to 96"),
    "no checkpoint": (["evocore-to-hf", "source", "new"], "source: no complete checkpoint there"),
    "a strange size": (["evocore-to-hf", "own", "new", "--max-shard-size", "much"], "--max-shard-size much"),
    "a strange dtype": (["evocore-to-hf", "own", "new", "--dtype", "float64"], "--dtype float64"),
    "both divisions": (
        ["evocore-to-internevo", "own", "new", "--tensor", "2", "--weight", "2"],
        "--tensor 2 --weight",
    ),
    "an uneven division": (["evocore-to-internevo", "own", "new", "--tensor", "3"], "cannot be divided over 3"),
    "nothing tells the model": (["internevo-to-evocore", "source", "new"], "nothing tells which model source is of"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    source = save(folder / "source")
    assert main(["convert", "hf-to-evocore", str(source), str(folder / "own")]) == 0
    for name, change in {
        "alien": lambda to: (to / "config.json").write_text(json.dumps({"model_type": "alien"})),
        "wordy": lambda to: (to / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 96}}})),
    }.items():
        (folder / name).mkdir()
        for file in source.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        change(folder / name)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told_and_leave_nothing_behind(case, folders, capsys, monkeypatch):
    arguments, told = REFUSED[case]
    monkeypatch.chdir(folders)
    before = sorted(folders.iterdir())

    code, out, err = run(capsys, *arguments)

    assert code == 2 and told in err and "to fix:" in err and not out
    assert sorted(folders.iterdir()) == before


@pytest.mark.parametrize("verb", ["hf-to-evocore", "evocore-to-hf", "internevo-to-evocore", "evocore-to-internevo"])
def test_what_is_already_there_stays(verb, folders, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("mine")

    for name in ("mine", "file"):
        code, _, err = run(capsys, verb, folders / "own", tmp_path / name)
        assert code == 2 and f"{tmp_path / name} exists and is not an empty folder" in err

    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it" and (tmp_path / "file").read_text() == "mine"
    assert len(list((tmp_path / "mine").iterdir())) == 1 and len(list(tmp_path.iterdir())) == 2


def test_an_empty_folder_may_be_taken_and_a_full_disk_leaves_it_empty(folders, capsys, tmp_path, monkeypatch):
    from evocore.checkpoint.hugging_face import export

    (tmp_path / "new").mkdir()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(export, "_write", full)
        code, _, err = run(capsys, "evocore-to-hf", folders / "own", tmp_path / "new")
    assert code == 2 and "No space left on device" in err and "GB are free" in err
    assert not list((tmp_path / "new").iterdir()) and len(list(tmp_path.iterdir())) == 1

    assert run(capsys, "evocore-to-hf", folders / "own", tmp_path / "new")[0] == 0
    assert (tmp_path / "new" / "model.safetensors").exists()


MEASURE = """
import resource, sys
from pathlib import Path
from evocore.conversion.hugging_face import evocore_to_hugging_face, hugging_face_to_evocore
from evocore.plugins.manager import load_plugins

registry, (small, large, to) = load_plugins(), map(Path, sys.argv[1:])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for name, source in (("small", small), ("large", large)):
    before = peak()
    hugging_face_to_evocore(source, to / f"{name}-own", registry)
    middle = peak()
    evocore_to_hugging_face(to / f"{name}-own", to / f"{name}-back", registry, shard_bytes=30_000_000)
print(middle - before, peak() - middle)
"""


def test_memory_stays_below_the_largest_file(folders, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    sizes = dict(COMMON, vocab_size=4096, hidden_size=512, intermediate_size=4096, head_dim=128)
    (large / "config.json").write_text(json.dumps(dict(sizes, model_type="llama", dtype="float32")))
    shapes = {"model.embed_tokens": (4096, 512), "lm_head": (4096, 512), "model.norm": (512,)}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (512, 512), "self_attn.k_proj": (256, 512), "self_attn.v_proj": (256, 512),
            "self_attn.o_proj": (512, 512), "mlp.gate_proj": (4096, 512), "mlp.up_proj": (4096, 512),
            "mlp.down_proj": (512, 4096), "input_layernorm": (512,), "post_attention_layernorm": (512,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}"] = shape
    save_file({f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}, large / "model.safetensors")
    largest = (large / "model.safetensors").stat().st_size
    assert largest > 70e6

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folders / "source"), str(large), str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    grown, grown_back = map(int, done.stdout.split())
    written = max(file.stat().st_size for file in (tmp_path / "large-back").glob("*.safetensors"))
    assert grown < 1.3 * largest and grown_back < 1.3 * written, (grown, grown_back, largest, written)
    before, after = load_file(large / "model.safetensors"), weights(tmp_path / "large-back")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
