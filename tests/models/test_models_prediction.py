"""Multi-token prediction, against the formulas of DeepSeek-V3's section 2.2 on layers of ``transformers``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models_parity import DEEPSEEK, LENGTH, ROWS, SMALL, Case, as_saved, batch, make, read
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from evocore.data.batch import MicroBatch
from evocore.nn.weight_map import to_theirs
from evocore.training.further import Further, ahead

COEFFICIENT, FURTHER, LAYERS = 0.3, 2, SMALL["num_hidden_layers"]


class Module(nn.Module):
    """What the paper calls an MTP module, without the embedding and the head that it shares with the model."""

    def __init__(self, config, layer):
        super().__init__()
        self.enorm, self.hnorm = (DeepseekV3RMSNorm(64, config.rms_norm_eps) for _ in range(2))
        self.eh_proj = nn.Linear(128, 64, bias=False)
        self.block = DeepseekV3DecoderLayer(config, layer)
        self.norm = DeepseekV3RMSNorm(64, config.rms_norm_eps)

    def forward(self, embedded, hidden, rotary):
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        length = x.shape[1]
        hidden_places = torch.full((length, length), float("-inf")).triu(1)[None, None]
        angles = rotary(x, torch.arange(length)[None])
        return self.norm(self.block(x, attention_mask=hidden_places, position_embeddings=angles))

    def in_files(self, tensors, number):
        """Tensors by the names that released files have for them, but for the experts'."""
        moved = {"block.": "", "norm.weight": "shared_head.norm.weight"}
        names = {}
        for name in tensors:
            start = next((start for start in moved if name.startswith(start)), "")
            names[name] = moved.get(start, "") + name.removeprefix(start)
        return {f"model.layers.{LAYERS + number}.{names[name]}": tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(4)
    config = make_config()
    found = [Module(config, LAYERS + number) for number in range(FURTHER)]
    for parameter in [one for module in found for one in module.parameters()]:
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1)
    for module in found:
        nn.init.normal_(module.block.mlp.gate.e_score_correction_bias, std=0.1)
    return found


def make_config():
    from transformers import AutoConfig

    return AutoConfig.for_model("deepseek_v3", **(SMALL | DEEPSEEK), attn_implementation="eager")


@pytest.fixture(scope="module")
def pair(modules, tmp_path_factory):
    """Models as of a released folder: the predictors' blocks, and embedding and head once more with each."""
    folder = tmp_path_factory.mktemp("theirs")
    case = Case("deepseek-v3", "deepseek_v3", DEEPSEEK, settings=dict(extra_pred_tokens=FURTHER))
    theirs = make(Case("", "deepseek_v3", DEEPSEEK), folder).theirs
    whole = theirs.state_dict()
    for number, module in enumerate(modules):
        whole |= module.in_files(module.state_dict(), number)
        prefix = f"model.layers.{LAYERS + number}"
        whole[f"{prefix}.embed_tokens.weight"] = theirs.model.embed_tokens.weight.detach().clone()
        whole[f"{prefix}.shared_head.head.weight"] = theirs.lm_head.weight.detach().clone()
    save_file(as_saved(theirs, whole, folder), folder / "model.safetensors", {"format": "pt"})
    return read(case, folder, theirs)


def test_losses_and_every_gradient_are_those_of_the_formulas(pair, modules, tmp_path):
    tokens, positions, documents = batch()
    labels = torch.randint(96, tokens.shape, generator=torch.Generator().manual_seed(8))
    rows, label_rows = tokens.view(ROWS, LENGTH), labels.view(ROWS, LENGTH)
    hidden = pair.theirs.model(rows).last_hidden_state
    expected = F.cross_entropy(pair.theirs.lm_head(hidden).flatten(0, 1), labels)
    for k, module in enumerate(modules, start=1):
        embedded = pair.theirs.model.embed_tokens(rows[:, k:])
        hidden = module(embedded, hidden[:, : LENGTH - k], pair.theirs.model.rotary_emb)
        logits = pair.theirs.lm_head(hidden).flatten(0, 1)
        loss = F.cross_entropy(logits, label_rows[:, k:].flatten(), reduction="sum") / tokens.numel()
        expected = expected + COEFFICIENT / FURTHER * loss
    expected.backward()

    ours, further = pair.ours, Further(FURTHER, COEFFICIENT)
    weights = torch.full(tokens.shape, 1 / tokens.numel())
    found = ours(tokens, positions, documents)
    micro = MicroBatch(tokens, labels, positions, documents.host)
    total = ours.loss(found, labels, weights).total
    total = total + further.loss(ours, micro, lambda x: x, found, positions, documents, weights)
    total.backward()

    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradients = {name: p.grad for name, p in pair.theirs.named_parameters()}
    for number, module in enumerate(modules):
        gradients |= module.in_files({name: p.grad for name, p in module.named_parameters()}, number)
    theirs = as_saved(pair.theirs, gradients, tmp_path)
    buffers = {name: torch.zeros_like(buffer) for name, buffer in ours.named_buffers()}
    mine = to_theirs(pair.match, {name: p.grad for name, p in ours.named_parameters()} | buffers)
    assert len(mine) == len(theirs) + len(buffers)
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_what_is_written_is_what_was_read_but_for_the_copies_of_embedding_and_head(pair):
    tensors = {name: p.detach() for name, p in pair.ours.named_parameters()} | dict(pair.ours.named_buffers())

    written, read_ = to_theirs(pair.match, tensors), load_file(pair.folder / "model.safetensors")

    copies = {name for name in read_ if name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))}
    copies.remove("model.embed_tokens.weight")
    assert len(copies) == 2 * FURTHER and written.keys() == read_.keys() - copies
    assert all(torch.equal(tensor, read_[name]) for name, tensor in written.items())
    assert pair.family.to_hugging_face(pair.config)["num_nextn_predict_layers"] == FURTHER


def test_what_lies_ahead_ends_with_the_document():
    x = torch.tensor([1, 2, 3, 4, 5, 6, 7])

    assert ahead(x, (0, 3, 4, 7), 1, 0).tolist() == [2, 3, 0, 0, 6, 7, 0]
    assert ahead(x, (0, 3, 4, 7), 2, -100).tolist() == [3, -100, -100, -100, 7, -100, -100]
