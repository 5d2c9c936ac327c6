"""Embedding and head shared by the ranks of a tensor group, against the same layers whole, in float32."""

from itertools import chain
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from parallel_layers import calls, close, counted_groups, own, random

from evocore.kernels.cross_entropy.reference import cross_entropy_shard
from evocore.kernels.linear_cross_entropy.reference import linear_cross_entropy
from evocore.nn.head import Head
from evocore.nn.initialise import generator_of, initial_value
from evocore.nn.layers import Embedding
from evocore.ops.cross_entropy import CrossEntropyShard, CrossEntropyShardRequest
from evocore.parallel import vocabulary
from evocore.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelHead

D, WORDS_PER_RANK, TOKENS_PER_RANK = 6, 5, 7
MODES = ["mtp", "msp", "fsp"]


def local(x, mode):
    """What a rank holds of a residual stream."""
    return x if mode == "mtp" else own(x)


def shared(whole, cls, mode):
    """A whole layer with the same weights on every rank, this rank's part of it, and what that exchanges."""
    with torch.no_grad():
        whole.weight.copy_(random(*whole.weight.shape, seed=5))
    part = cls.of(whole, mode, dist.get_world_size(), dist.get_rank())
    with torch.no_grad():
        part.weight.copy_(own(whole.weight))
    groups, recorder = counted_groups(mode)
    part.connect(groups.get("tensor"))
    return part, recorder


def random_tokens(count, vocab):
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(3))


# --- the embedding ------------------------------------------------------------------------------------------------


def check_embedding(mode):
    world = dist.get_world_size()
    vocab, count = world * WORDS_PER_RANK, world * TOKENS_PER_RANK
    whole = Embedding(vocab, D, dtype=torch.float32, init_std=1.0)
    part, recorder = shared(whole, VocabularyParallelEmbedding, mode)
    tokens, grad = random_tokens(count, vocab), random(count, D)
    tokens[:4] = torch.tensor([0, WORDS_PER_RANK - 1, WORDS_PER_RANK, vocab - 1])  # the ends of parts
    expected = whole(tokens)
    expected.backward(grad)

    y = part(tokens)
    assert torch.equal(y, local(expected, mode))  # to the bit: all other ranks add zeros
    assert calls(recorder) == ({"all_reduce": 1} if mode == "mtp" else {"reduce_scatter": 1})
    y.backward(local(grad, mode))
    close(part.weight.grad, own(whole.weight.grad))
    assert calls(recorder) == ({} if mode == "mtp" else {"all_gather": 1})

    with torch.no_grad():
        assert torch.equal(part(tokens), y)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 4])
def test_the_embedding_and_its_gradient_are_those_of_the_whole(ranks, world, mode):
    ranks(world, check_embedding, mode)


# --- the head -----------------------------------------------------------------------------------------------------


class Sizes:
    """A shard's kernels that note how many rows they are given."""

    def __init__(self):
        self.forward_rows, self.backward_rows = [], []
        self.kernel = CrossEntropyShard(self._forward, self._backward)

    def _forward(self, logits, labels):
        self.forward_rows.append(len(logits))
        return cross_entropy_shard.forward(logits, labels)

    def _backward(self, logits, *args, **kwargs):
        self.backward_rows.append(len(logits))
        return cross_entropy_shard.backward(logits, *args, **kwargs)


def heads(mode, normalised=False):
    vocab = dist.get_world_size() * WORDS_PER_RANK
    whole = Head(D, vocab, dtype=torch.float32, init_std=1.0, normalised=normalised)
    whole.linear_cross_entropy = linear_cross_entropy
    part, recorder = shared(whole, VocabularyParallelHead, mode)
    sizes = Sizes()
    part.cross_entropy_shard = sizes.kernel
    return whole, part, recorder, sizes


def check_loss(mode, normalised, weighted, options, chunk):
    whole, part, recorder, sizes = heads(mode, normalised)
    count = dist.get_world_size() * TOKENS_PER_RANK
    labels = random_tokens(count, whole.vocab)
    labels[:6] = torch.tensor([0, WORDS_PER_RANK - 1, WORDS_PER_RANK, whole.vocab - 1, -100, -100])
    hidden = random(count, D).requires_grad_()
    with torch.no_grad():  # some labels are the largest of their row
        hidden[2::3] = 2 * F.normalize(whole.weight[labels[2::3].clamp_min(0)])
    weights = random(count, seed=2).square() if weighted else None
    expected = whole.loss(hidden, labels, weights, **options)
    assert 0 < expected.correct_T.sum() < count
    (expected.total * 3).backward()

    own_hidden = local(hidden.detach(), mode).clone().requires_grad_()
    with patch.object(vocabulary, "CHUNK", chunk):
        loss = part.loss(own_hidden, labels, weights, **options)
        forward = calls(recorder)
        (loss.total * 3).backward()
        backward = calls(recorder)
        with torch.no_grad():
            without = part.loss(own_hidden, labels, weights, **options)
        calls(recorder)

    for found in (loss, without):
        close(found.total, expected.total)
        close(found.loss_T, expected.loss_T)
        assert torch.equal(found.correct_T, expected.correct_T) and found.total.dtype == torch.float32
    assert (loss.loss_T.requires_grad, without.total.requires_grad) == (False, False)
    close(own_hidden.grad, local(hidden.grad, mode))
    close(part.weight.grad, own(whole.weight.grad))
    return forward, backward, sizes.forward_rows, sizes.backward_rows


LOSSES = [  # whether rows are normalised, whether tokens are weighted, and the options
    (False, False, {}),
    (True, True, {}),
    (False, True, dict(label_smoothing=0.1)),
    (True, False, dict(z_loss=0.01)),
    (False, True, dict(label_smoothing=0.2, z_loss=0.1)),
]


def check_losses(mode, chunk):
    return [check_loss(mode, *loss, chunk) for loss in LOSSES]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 4])
def test_the_loss_and_its_gradients_are_those_of_the_whole(ranks, world, mode):
    count, rows = world * TOKENS_PER_RANK, 4
    chunks = [min(rows, count - start) for start in range(0, count, rows)]

    results = ranks(world, check_losses, mode, rows * WORDS_PER_RANK)

    for forward, backward, forward_rows, backward_rows in chain(*results):
        # In training all logits at once, because backward needs them; otherwise never more than a chunk of them.
        assert forward_rows == [count, *chunks] and backward_rows == chunks
        if mode == "mtp":
            assert forward == {"all_gather": 1} and backward == {"all_reduce": 1}
        else:
            assert forward == {"all_gather": 2}
            assert backward == {"reduce_scatter": 1} | ({"all_gather": 1} if mode == "fsp" else {})


def check_some_gradients(mode):
    whole, part, recorder, sizes = heads(mode)
    count = dist.get_world_size() * TOKENS_PER_RANK
    labels, hidden = random_tokens(count, whole.vocab), random(count, D)
    expected = whole.loss(hidden.requires_grad_(), labels)
    expected.total.backward()
    own_hidden = local(hidden.detach(), mode).clone()

    part.loss(own_hidden, labels).total.backward()
    close(part.weight.grad, own(whole.weight.grad))
    gathers = {"mtp": 1, "msp": 2, "fsp": 3}[mode]
    assert calls(recorder) == {"all_gather": gathers}

    part.requires_grad_(False)
    total = part.loss(own_hidden.requires_grad_(), labels).total
    total.backward(retain_graph=True)
    close(own_hidden.grad, local(hidden.grad, mode))
    with pytest.raises(RuntimeError, match="differentiated once"):
        total.backward()

    part.loss(own_hidden.detach(), labels)
    assert len(sizes.backward_rows) == 2  # none for the last


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_computed_where_they_are_needed(ranks, mode):
    ranks(2, check_some_gradients, mode)


def check_low_precision(mode):
    whole, part, recorder, _ = heads(mode)
    count = dist.get_world_size() * TOKENS_PER_RANK
    labels, hidden = random_tokens(count, whole.vocab), random(count, D).bfloat16()
    own_hidden = local(hidden, mode).clone().requires_grad_()
    expected = whole.loss(hidden.float(), labels)

    loss = part.bfloat16().loss(own_hidden, labels)
    loss.total.backward()

    assert loss.total.dtype == loss.loss_T.dtype == torch.float32
    torch.testing.assert_close(loss.loss_T, expected.loss_T, rtol=0.05, atol=0.05)
    assert own_hidden.grad.dtype == part.weight.grad.dtype == torch.bfloat16
    statistics = 4 * 4 * count * dist.get_world_size()
    assert {event.bytes for event in recorder.events} == {statistics, 2 * D * count}


@pytest.mark.parametrize("mode", MODES)
def test_statistics_travel_in_float32_and_the_rest_as_it_is(ranks, mode):
    ranks(2, check_low_precision, mode)


def check_logits(mode, normalised):
    whole, part, recorder, _ = heads(mode, normalised)
    count = dist.get_world_size() * TOKENS_PER_RANK
    hidden, grad = random(count, D).requires_grad_(), random(count, whole.vocab, seed=1)
    expected = whole(hidden)
    expected.backward(grad)
    own_hidden = local(hidden.detach(), mode).clone().requires_grad_()

    logits = part(own_hidden)
    logits.backward(grad)

    close(logits, expected)
    close(own_hidden.grad, local(hidden.grad, mode))
    close(part.weight.grad, own(whole.weight.grad))


@pytest.mark.parametrize("mode", MODES)
def test_every_rank_has_all_logits(ranks, mode):
    ranks(2, check_logits, mode, normalised=mode == "msp")


# --- what needs no other rank -------------------------------------------------------------------------------------


def test_a_part_is_made_where_the_whole_is_and_initialised_as_it_is():
    with torch.device("meta"):
        embedding = Embedding(12, D, dtype=torch.bfloat16, init_std=0.5)
        head = Head(D, 12, dtype=torch.bfloat16, init_std=0.25, normalised=True)

    for whole, part, std in (
        (embedding, VocabularyParallelEmbedding.of(embedding, "msp", 3, 1), 0.5),
        (head, VocabularyParallelHead.of(head, "msp", 3, 1), 0.25),
    ):
        assert part.weight.is_meta and part.weight.shape == (4, D) and part.weight.dtype == torch.bfloat16
        assert (part.start, part.role) == (4, whole.role) and dict(part.named_parameters()).keys() == {"weight"}
        value = initial_value(part, "weight", (12, D), generator_of(1, "weight"))
        assert torch.equal(value, initial_value(whole, "weight", (12, D), generator_of(1, "weight")))
        assert 0.5 < value.std() / std < 2


def test_a_shared_head_asks_for_the_kernel_of_a_shard():
    head = VocabularyParallelHead.of(Head(D, 12, dtype=torch.float32, init_std=1.0), "mtp", 3, 2)
    assert head.requests() == {"cross_entropy_shard": CrossEntropyShardRequest(torch.float32, 4)}
    assert head.vocab == 12 and head.start == 8
