"""Choosing tokens, and continuing prompts with a cache against a plain loop without one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evocore.errors import UserError
from evocore.generation import Sampling, choose, generate
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    registry = load_plugins()
    settings = dict(
        vocab_size=50, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2, mlp_ratio=2,
        multiple_of=16, attn_wqkv_init_std=0.3, ffn_uplayer_init_std=0.3, out_head_init_std=0.5,
    )  # fmt: skip
    model = registry.models()[0].build(settings, Numerics(*[torch.float32] * 3))
    bind_kernels(model.to_empty(device="cpu"), resolve(model_requests(model), registry.kernels(), "cpu"))
    initialise(model, 3)
    return model.eval()


@torch.no_grad()
def greedy_without_cache(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), CuSeqlens.of([0, len(tokens)]))
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_a_loop_without_cache_also_in_a_batch(model):
    prompts = [[1, 7, 9, 30], [5], [8, 8, 8, 8, 8, 8, 2]]
    new = generate(model, prompts, Sampling(max_new_tokens=12), CPU)

    assert new == [greedy_without_cache(model, prompt, 12) for prompt in prompts]
    assert len({tuple(row) for row in new}) == 3


def test_stop_token_ends_its_sequence_only(model):
    prompts = [[1, 7, 9, 30], [5]]
    free = generate(model, prompts, Sampling(max_new_tokens=12), CPU)
    stop = free[0][4]

    stopped = generate(model, prompts, Sampling(max_new_tokens=12), CPU, stop_ids={stop})

    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]


def test_sampling_is_reproducible_and_depends_on_the_seed(model):
    def draw(seed):
        return generate(model, [[4, 5]], Sampling(20, temperature=1.5, seed=seed), CPU)

    assert draw(1) == draw(1) != draw(2)


LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


@pytest.mark.parametrize(
    ("options", "reachable"),
    [
        (dict(temperature=1.0), {0, 1, 2, 3}),
        (dict(temperature=1.0, top_k=2), {0, 1}),
        (dict(temperature=1.0, top_p=0.5), {0}),
        (dict(temperature=1.0, top_p=0.51), {0, 1}),
        (dict(temperature=1.0, top_p=0.9, top_k=3), {0, 1, 2}),
        (dict(temperature=0.0), {0}),
    ],
    ids=str,
)
def test_only_allowed_tokens_are_drawn_with_their_probabilities(options, reachable):
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(**options)
    drawn = choose(LOGITS.expand(4000, 4), sampling, generator)

    assert set(drawn.tolist()) == reachable
    allowed = torch.tensor([LOGITS.exp()[0, token] for token in sorted(reachable)])
    frequencies = torch.bincount(drawn, minlength=4)[sorted(reachable)] / 4000
    assert torch.allclose(frequencies, allowed / allowed.sum(), atol=0.03)


@given(st.floats(0.01, 100))
def test_temperature_scales_the_logits(temperature):
    sharp = Sampling(temperature=temperature)
    generator, again = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    drawn = choose(LOGITS.expand(50, 4), sharp, generator)
    expected = torch.multinomial((LOGITS / temperature).softmax(-1).expand(50, 4), 1, generator=again).squeeze(-1)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1.0), ("top_k", -3), ("top_p", 0.0), ("top_p", 1.5), ("max_new_tokens", 0)]
)
def test_numbers_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"{name} = {value}"):
        Sampling(**{name: value})
