"""``model_type="hf"``: classes of ``transformers`` train as they are, packed and in parallel, and come back out."""

import json

import models_hf_runs as runs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, masking_utils

from evocore.cli.main import main
from evocore.config import check, load_values
from evocore.errors import UserError
from evocore.generation import Sampling, generate
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import find_family

CLASSES = sorted(runs.CLASSES)


@pytest.fixture(scope="module", params=CLASSES)
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    runs.write_model(folder / "model", request.param)
    runs.write_corpus(folder / "train")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    runs.write_model(folder / "model", "llama")
    runs.write_corpus(folder / "train")
    return folder


def whole(hf, dtype=torch.float32, **settings):
    """A model in memory, without a run."""
    registry = load_plugins()
    values = dict(data=dict(seq_len=8, micro_bsz=1, total_steps=1), model=settings, hf=hf)
    config = load_values(values).config
    model = find_family("hf", registry).build(config.family_settings(), Numerics(*[dtype] * 3))
    assert all(parameter.is_meta for parameter in model.parameters())
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu"))
    return model


def test_packed_documents_train_as_each_by_itself_and_come_back_out(root, tmp_path):
    saves = dict(enable_save_ckpt=True, checkpoint_every=2, save_ckpt_folder=str(tmp_path / "saved"))
    steps, _ = runs.figures(runs.values(root, ckpt=saves))

    theirs = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32).eval()
    documents = [json.loads(line)["tokens"] for line in (root / "train/part.bin").read_text().splitlines()]
    with torch.no_grad():
        logits = [theirs(torch.tensor([document])).logits[0, :-1] for document in documents]
    targets = torch.cat([torch.tensor(document[1:]) for document in documents])
    mean = float(F.cross_entropy(torch.cat(logits), targets))
    assert len(steps) == runs.STEPS and abs(steps[0][0] - mean) < 0.1  # of some of them, cut where packs end
    assert steps[-1][0] < steps[0][0] - 0.2

    assert main(["convert", "evocore-to-hf", str(tmp_path / "saved"), str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    assert not torch.equal(again(torch.tensor([[1, 2, 3]])).logits, theirs(torch.tensor([[1, 2, 3]])).logits)
    more = dict(data=dict(total_steps=1), ckpt=dict(load_ckpt_info=dict(path=str(tmp_path / "out"), ckpt_type="hf")))
    assert runs.figures(runs.values(root, **more))[0][0][0] < steps[0][0]


def test_a_class_trains_as_our_own_family_does(llama):
    own = runs.values(llama, model_type="LLAMA2", hf=None)
    sizes = dict(
        num_layers=3, hidden_size=32, num_attention_heads=4, num_kv_attention_heads=2, head_dim=8, mlp_ratio=2,
        multiple_of=64, vocab_size=runs.VOCAB, qk_interleaved=False, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    own["model"] |= sizes
    del own["hf"]

    np.testing.assert_allclose(runs.figures(runs.values(llama))[0], runs.figures(own)[0], rtol=1e-5)


FSDP = dict(fsdp=dict(enable=True))
LAYOUTS = {
    "llama-zero2": ("llama", dict(zero1=dict(size=2))),
    "gpt2-fsdp2": ("gpt2", FSDP | dict(zero1=dict(size=-1))),
    "gemma2-fsdp2": ("gemma2", FSDP | dict(zero1=dict(size=2))),
}
OVERLAP = dict(overlap_sync_grad=True, overlap_sync_param=True, reduce_bucket_size=3000)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_train_as_one_process_does(layout, ranks, tmp_path):
    model_type, parallel = LAYOUTS[layout]
    runs.write_model(tmp_path / "model", model_type)
    runs.write_corpus(tmp_path / "train")
    blocks = dict(hybrid_zero_optimizer=OVERLAP, ckpt=dict(load_ckpt_info=None))  # initial weights drawn in parts
    expected, _ = runs.figures(runs.values(tmp_path, **blocks))

    ours = ranks(2, runs.figures, runs.values(tmp_path, 2, parallel=parallel, **blocks), timeout=120)[0][0]

    assert expected[-1][0] < expected[0][0]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_a_model_starts_with_the_weights_that_its_class_draws(root):
    model = whole(dict(path=str(root / "model")))
    buffers = {name: buffer.clone() for name, buffer in model.theirs.named_buffers()}
    initialise(model, 3)

    theirs = AutoModelForCausalLM.from_config(model.theirs.config)
    for name, parameter in model.theirs.named_parameters():
        drawn = theirs.get_parameter(name)
        if name.endswith("c_proj.weight"):  # GPT-2's attention and MLP draw these, which are not theirs, once more
            continue
        assert (parameter.std() - drawn.std()).abs() <= 0.15 * drawn.std(), name
        assert (parameter.mean() - drawn.mean()).abs() <= 0.02, name
    for name, buffer in theirs.named_buffers():
        assert torch.equal(buffers[name], buffer) and torch.equal(model.theirs.get_buffer(name), buffer), name


def test_greedy_generation_is_theirs_token_by_token(root):
    theirs = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32).eval()
    model = whole(dict(path=str(root / "model")))
    model.theirs.load_state_dict(theirs.state_dict())
    prompts = [[1, 7, 9, 30], [5], [8, 8, 8, 2, 4, 4, 4]]

    new = generate(model.eval(), prompts, Sampling(max_new_tokens=12), torch.device("cpu"))

    for prompt, ours in zip(prompts, new, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert ours == expected[0, len(prompt) :].tolist()


def test_flops_are_those_of_the_family(llama):
    registry = load_plugins()
    theirs = whole(dict(path=str(llama / "model")), checkpoint=True)
    family = find_family("LLAMA2", registry)
    settings = family.from_hugging_face(json.loads((llama / "model/config.json").read_text()))
    ours = family.build(dict(settings, checkpoint=1.0), Numerics(*[torch.float32] * 3))

    assert theirs.matmul_parameters() == ours.matmul_parameters()
    assert [(shape.heads, shape.head_dim, shape.window) for shape in theirs.attention_shapes()] == [(4, 8, None)] * 3
    assert theirs.recomputed_attention_layers() == 3 and theirs.recomputed_blocks() == frozenset(range(3))


def test_a_class_that_mixes_documents_is_refused_before_the_first_step(llama, monkeypatch):
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)

    with pytest.raises(UserError, match="LlamaForCausalLM does not keep packed documents apart"):
        runs.figures(runs.values(llama))


def test_a_class_without_positions_is_refused():
    bloom = dict(cfg="transformers", cfg_cls="BloomConfig", mod="transformers", mod_cls="BloomForCausalLM")
    small = dict(hidden_size=32, n_layer=1, n_head=2, vocab_size=64)

    with pytest.raises(UserError, match="BloomForCausalLM takes no position_ids"):
        whole(bloom | dict(cfg_extra_kwargs=small))


def test_code_beside_a_model_is_never_run(llama, tmp_path):
    config = json.loads((llama / "model/config.json").read_text())
    config |= dict(
        model_type="evil",
        architectures=["EvilForCausalLM"],
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    with pytest.raises(UserError, match="transformers cannot read its config.json"):
        whole(dict(path=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


CUT = "a class of transformers cannot be cut"
REFUSED = {
    "parallel.tensor.size=2, parallel.pipeline.size=2": (
        dict(parallel=dict(tensor=dict(size=2), pipeline=dict(size=2))),
        CUT,
    ),
    "parallel.weight.size=2": (dict(parallel=dict(tensor=dict(mode="isp"), weight=dict(size=2))), CUT),
    "model.checkpoint, use_fp32_norm": (
        dict(model=dict(checkpoint=0.5), use_fp32_norm=True),
        "runs its layers by itself",
    ),
}


@pytest.mark.parametrize("keys", REFUSED)
def test_what_a_class_cannot_do_is_one_error(llama, keys):
    blocks, reason = REFUSED[keys]

    (problem,) = check(load_values(runs.values(llama, **blocks)).config, world_size=4, families={"hf"})
    assert problem.wrong.startswith(f"{keys} with model_type='hf'") and reason in problem.wrong
    assert check(load_values(runs.values(llama)).config, world_size=4, families={"hf"}) == []
