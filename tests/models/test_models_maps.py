"""Every family's tables: each element of each parameter once, to Hugging Face and to InternEvo and back."""

import pytest
import torch

from evocore.checkpoint.hugging_face.load import model_shapes
from evocore.config import load_values
from evocore.nn.family import Numerics
from evocore.nn.weight_map import to_ours, to_theirs
from evocore.plugins.manager import load_plugins

FP32 = Numerics(torch.float32, torch.float32, torch.float32)
SMALL = dict(
    vocab_size=24, hidden_size=16, num_layers=3, num_attention_heads=4, num_kv_attention_heads=2, mlp_ratio=2,
    multiple_of=4,
)  # fmt: skip
EXPERTS = dict(num_experts=4, top_k=2, num_shared_experts=1)
LATENT = dict(
    q_lora_rank=6, kv_lora_rank=4, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4, num_kv_attention_heads=4
)
OPTIONS = {
    "plain": {},
    "fused": dict(mlp_layer_fusion=True, enable_qkv_fusion=False),
    "interleaved": dict(qk_interleaved=True, head_dim=6),
    "biased": dict(no_bias=False, mlp_bias=True),
    "tied": dict(tie_word_embeddings=True),
    "untied-normalised": dict(tie_word_embeddings=False, norm_head=True),
}
FAMILIES = {family.name: family for family in load_plugins().models() if family.name != "hf"}
"""All but the one whose model is whatever a config names."""
NOT_IN_HUGGING_FACE = {"INTERNLM_MoE"}
MAPS = ("weights", "internevo_weights")
CASES = [(name, kind) for name in sorted(FAMILIES) for kind in MAPS if FAMILIES[name].has(kind)]


def settings_of(name, values):
    """The checked ``model`` block."""
    data = dict(type="random", seq_len=8, micro_bsz=1, total_steps=1)
    config = load_values(dict(model_type=name, model=values, data=data, ckpt=dict(enable_save_ckpt=False))).config
    return config.model.model_dump()


def small(name, options):
    """A tiny model with whatever the family's released ones have."""
    released = {key for block in FAMILIES[name].sizes().values() for key in block}
    own = EXPERTS if "num_experts" in released or "MoE" in name else {}
    own = own | (LATENT if "kv_lora_rank" in released else {})
    own = own | (dict(extra_pred_tokens=1) if "extra_pred_tokens" in released else {})
    return settings_of(name, dict(qk_interleaved=False) | SMALL | own | options)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
def test_every_element_goes_and_comes_back(name, kind, option):
    family = FAMILIES[name]
    model = family.build(small(name, OPTIONS[option]), FP32)
    shapes = model_shapes(model)
    if kind == "internevo_weights" and model.spec.tied:
        with pytest.raises(ValueError, match="tied"):
            family.internevo_weights(model)
        return

    match = getattr(family, kind)(model).match(shapes)  # which refuses what is not there exactly once

    ours, start = {}, 1
    for parameter, shape in shapes.items():
        count = torch.Size(shape).numel()
        ours[parameter] = torch.arange(start, start + count, dtype=torch.float64).view(shape)
        start += count
    theirs = to_theirs(match, ours)
    assert sum(tensor.numel() for tensor in theirs.values()) == start - 1
    back = to_ours(match, theirs)
    changed = {parameter for parameter in ours if not torch.equal(back[parameter], ours[parameter])}
    normalised = {piece.ours for piece in match.pieces if piece.normalised}
    assert changed == normalised  # which are written at length one


def test_every_family_knows_its_form_in_hugging_face():
    without = {name for name, family in FAMILIES.items() if not family.has("weights")}
    assert without == NOT_IN_HUGGING_FACE


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - NOT_IN_HUGGING_FACE))
def test_released_sizes_are_the_same_through_a_config_json(name):
    family = FAMILIES[name]
    assert family.sizes(), "a family names its released sizes"
    for size, block in family.sizes().items():
        wanted = settings_of(name, dict(block) | dict(num_layers=2))
        again = settings_of(name, family.from_hugging_face(family.to_hugging_face(wanted)))
        assert family.build(again, FP32).spec == family.build(wanted, FP32).spec, size


def test_a_family_without_tables_says_what_is_missing():
    model = FAMILIES["INTERNLM_MoE"].build(small("INTERNLM_MoE", {}), FP32)
    with pytest.raises(ValueError, match="INTERNLM_MoE cannot be converted.*has no function 'weights'"):
        FAMILIES["INTERNLM_MoE"].weights(model)
