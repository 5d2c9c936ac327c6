"""Every family that ``transformers`` has, against it: logits, loss, every gradient, generation, and the way back."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from models_parity import CASES, LENGTH, ROWS, VOCAB, as_saved, batch, make
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evocore.generation import Sampling, generate
from evocore.nn.weight_map import to_theirs

TOLERANCE = 1e-5
"""Largest difference over the largest value of a tensor."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pair(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp("theirs"))


def assert_equal(actual, expected, name=""):
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max(), name


def test_logits_loss_and_every_gradient_are_theirs(pair, tmp_path):
    tokens, positions, documents = batch()
    labels = tokens.roll(-1)
    logits = pair.theirs(tokens.view(ROWS, LENGTH), use_cache=False).logits.flatten(0, 1)
    expected = F.cross_entropy(logits, labels)
    pair.theirs.zero_grad()
    expected.backward()

    hidden = pair.ours(tokens, positions, documents)
    loss = pair.ours.loss(hidden, labels, torch.full(tokens.shape, 1 / len(tokens))).total
    pair.ours.zero_grad()
    loss.backward()

    assert_equal(pair.ours.logits(hidden).detach(), logits.detach())
    assert_equal(loss.detach(), expected.detach())
    buffers = {name: torch.zeros_like(buffer) for name, buffer in pair.ours.named_buffers()}
    ours = to_theirs(pair.match, {name: p.grad for name, p in pair.ours.named_parameters()} | buffers)
    theirs = as_saved(pair.theirs, {name: p.grad for name, p in pair.theirs.named_parameters()}, tmp_path)
    assert len(ours) == len(theirs) + len(buffers)
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0 or ".experts." in name, name
        assert_equal(ours[name], gradient, name)


def test_what_is_written_back_is_what_was_read(pair, tmp_path):
    ours = {name: p.detach() for name, p in pair.ours.named_parameters()} | dict(pair.ours.named_buffers())
    written = to_theirs(pair.match, ours)
    read = load_file(pair.folder / "model.safetensors")

    assert written.keys() == read.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, read[name]), name
    save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(pair.family.to_hugging_face(pair.config)))
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    tokens = batch()[0].view(ROWS, LENGTH)
    assert torch.equal(again(tokens).logits, pair.theirs(tokens).logits)


def test_greedy_generation_is_theirs_token_by_token(pair):
    prompts = torch.randint(VOCAB, (3, 5), generator=torch.Generator().manual_seed(9))

    ours = generate(pair.ours, prompts.tolist(), Sampling(max_new_tokens=18), torch.device("cpu"))
    theirs = pair.theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=18, do_sample=False
    )

    assert ours == theirs[:, 5:].tolist()
