"""What blocks keep for backward: how much, where, how often they compute, and when copies are under way."""

import pytest
import torch
from parallel_activations import CPU, FLOAT32, HEADS, HIDDEN, PLAIN, TOKENS, WIDTH, LateBackend, Training, kept
from parallel_counted_cases import LLAMA, Case, tensor
from parallel_counted_runs import run

from evocore.backends.cpu.device import CPUBackend
from evocore.config import load_values
from evocore.nn.blocks import first_of_each
from evocore.parallel.activations import ActivationMemory, ActivationOptions
from evocore.parallel.activations.host import HostCopies, Parcel
from evocore.parallel.context.messages import messages

LAYERS = 4
KEPT, KEPT_ON_HOST = ActivationOptions(True), ActivationOptions(True, True)
AGAIN = dict(checkpoint=1.0)
INPUT = TOKENS * HIDDEN * FLOAT32
OUTPUT = TOKENS * HEADS * WIDTH * FLOAT32
STATISTICS = TOKENS * HEADS * FLOAT32


def moved(*blocks, keeps_attention=False):
    return ActivationOptions(keeps_attention, blocks_on_host=frozenset(blocks))


def of_one_block(options=PLAIN, **case):
    """Bytes that a block keeps, other than the first, which adds to nothing yet."""
    return kept(options, num_layers=3, **case) - kept(options, num_layers=2, **case)


# --- how often ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["reference", "native", "blocked"])
@pytest.mark.parametrize("family", ["INTERNLM2", "LLAMA2"])
def test_all_is_computed_again_but_for_attention(family, attention):
    case = dict(family=family, attention=attention)
    plain, again, selective = Training(**case), Training(**AGAIN, **case), Training(KEPT, **AGAIN, **case)

    expected = plain.step()

    for training, times in ((again, 2), (selective, 1)):
        for ours, theirs in zip(training.step(), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert training.calls["attention"] == times * LAYERS
        assert training.calls["rotary"] == 2 * plain.calls["rotary"] == 4 * LAYERS


@pytest.mark.parametrize("keeps", [False, True])
def test_kept_attention_sends_no_messages_again(keeps, ranks, tmp_path):
    """Around it, heads are exchanged for tokens again."""
    grid = dict(enable=True, head_size=2, context_size=2, window_size=1)
    again = dict(selective_checkpoint=keeps, model=dict(checkpoint=1.0, num_layers=2))
    case = Case(4, tensor(4, "isp", sequence_2D=grid), again | LLAMA)
    found = messages(1, 2, 0, FLOAT32)
    forward, backward = (sum(getattr(one, way) for one in found) for way in ("forward", "backward"))

    for one in ranks(4, run, case, tmp_path):
        calls = {}
        for (op, _), (count, _) in one.totals(1).items():
            calls[op] = calls.get(op, 0) + count
        assert calls["send"] == calls["recv"] == 2 * ((1 if keeps else 2) * forward + backward)
        assert calls["all_to_all"] == 2 * (2 + 2 + 2)


def test_attention_that_was_kept_serves_one_backward():
    training = Training(KEPT, **AGAIN)
    loss = training.loss()
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


# --- how much -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "attention", "besides"),
    [
        (PLAIN, "blocked", 0),
        (KEPT, "blocked", OUTPUT),
        (KEPT, "native", OUTPUT + STATISTICS),
        (KEPT_ON_HOST, "native", OUTPUT + STATISTICS),
    ],
)
def test_a_recomputed_block_keeps_its_inputs_and_what_attention_has_kept(options, attention, besides):
    assert of_one_block(options, attention=attention, cuts=(0, TOKENS), **AGAIN) == 2 * INPUT + besides


@pytest.mark.parametrize(
    ("options", "case", "expected"),
    [
        (KEPT_ON_HOST, AGAIN | dict(attention="native", cuts=(0, TOKENS)), OUTPUT + STATISTICS),
        (KEPT_ON_HOST, {}, None),
        (moved(1, 2), AGAIN, 2 * INPUT),
        (moved(1, 2, keeps_attention=True), AGAIN, 2 * INPUT + OUTPUT),
        (moved(1, 2), {}, of_one_block),
    ],
    ids=["attention", "nothing recomputed", "inputs", "inputs and attention", "everything"],
)
def test_what_moves_is_what_would_be_kept_and_it_is_nowhere_else(options, case, expected):
    backend = LateBackend()
    here = kept(ActivationOptions(options.keeps_attention), **case)

    # The attention of the last block has no block behind it that could hide its way.
    assert kept(options, backend=backend, **case) == here
    expected = of_one_block(**case) if callable(expected) else expected
    to_host = [] if expected is None else [expected] * (2 if options.blocks_on_host else LAYERS - 1)
    assert [batch.bytes for batch in backend.batches] == to_host * 2


@pytest.mark.parametrize("family", ["INTERNLM2", "LLAMA2"])
def test_only_what_is_needed_of_a_storage_moves_and_once(family):
    """Of a fused projection queries and keys are turned, which leaves the values; gate and up are all of it."""
    backend = LateBackend()
    Training(moved(1), family=family, backend=backend, mlp_layer_fusion=True).loss()

    assert backend.batches[0].bytes == of_one_block(family="LLAMA2")


def test_parts_of_a_storage_come_back_as_they_were():
    x, y = torch.arange(24.0).view(4, 6), torch.arange(24.0, 48).view(4, 6)
    views = [x, x[1:3], x.T, x.view(-1), y[:, 2:5], y[:, 2:5], y[3], y.view(-1)[18:]]
    backend = LateBackend()
    parcel = Parcel(HostCopies(backend, CPU))
    items, expected = [parcel.put(view) for view in views], [view.clone() for view in views]
    del views

    for move in (parcel.close, parcel.depart, parcel.land):
        assert all(torch.equal(item(), view) for item, view in zip(items, expected, strict=True))
        move()
    x.zero_()
    y.zero_()

    assert all(torch.equal(item(), view) for item, view in zip(items, expected, strict=True))
    assert [batch.bytes for batch in backend.batches] == [(24 + 4 * 3 + 6) * FLOAT32] * 2


def test_memory_that_others_empty_and_fill_again_is_left_to_them():
    gathered, backend = torch.ones(8), LateBackend()
    parcel = Parcel(HostCopies(backend, CPU))
    item = parcel.put(gathered.detach())
    gathered.untyped_storage().resize_(0)

    for move in (parcel.close, parcel.depart, parcel.land):
        move()
    gathered.untyped_storage().resize_(8 * FLOAT32)
    gathered.fill_(3)

    assert item().tolist() == [3] * 8 and not backend.batches[0].bytes


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        KEPT_ON_HOST,
        moved(0, 1),
        moved(0, 1, 2, 3, keeps_attention=True),
        ActivationOptions(True, True, frozenset({0})),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_copies_are_waited_for_before_their_memory_is_used_or_freed(options, share):
    expected = Training(checkpoint=share).step()
    training = Training(options, checkpoint=share, backend=LateBackend())

    for _ in range(2):
        for ours, theirs in zip(training.step(), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_copies_are_under_way_while_the_next_block_computes():
    """The last block's never begin, as its backward comes first."""
    training = Training(KEPT_ON_HOST, num_layers=3, **AGAIN)
    training.step()

    log = [event for event, before in zip(training.log, [None, *training.log], strict=False) if event != before]
    forward = [0, "copies", 1, "arrived", "copies", 2, "arrived"]
    assert log == [*forward, "copies", 2, "arrived", "copies", 1, "arrived", 0]


@pytest.mark.parametrize("options", [moved(*range(6)), ActivationOptions(True, True)], ids=str)
def test_of_two_blocks_at_most_is_anything_on_the_device(options):
    backend = LateBackend()
    Training(options, num_layers=6, checkpoint=float(options.keeps_attention), backend=backend).step()

    assert len(backend.batches) == 2 * 5
    for number, (sources, targets) in enumerate(backend.left):
        if number < 5:  # another block's way to the host begins when that of the one before has ended
            assert not sources
        else:  # ... and back to the device, when backward has let go of all but the block that it begins with
            assert {batch for batch in targets if batch >= 5} <= {number - 1}


# --- which ----------------------------------------------------------------------------------------------------------


def test_chunks_share_what_moves_in_proportion():
    values = dict(
        data=dict(seq_len=8, micro_bsz=1, micro_num=2, total_steps=1),
        model=dict(vocab_size=64, hidden_size=32, num_layers=8, num_attention_heads=4, mlp_ratio=2),
        ckpt=dict(enable_save_ckpt=False),
        adam=dict(lr=1e-3),
        selective_checkpoint=True,
        cpu_offloading=dict(enable=True, num_layers=4),
    )
    config = load_values(values).config

    assert ActivationOptions.of(config) == ActivationOptions(True, False, frozenset(range(4)))
    cut = ActivationOptions.of(config, [range(0, 3), range(3, 6), range(6, 8)])
    assert cut.blocks_on_host == first_of_each(4, 8, [range(0, 3), range(3, 6), range(6, 8)]) == {0, 3, 4, 6}


def test_a_model_that_runs_its_blocks_by_itself_is_refused():
    with pytest.raises(TypeError, match="Linear has no run_block"):
        ActivationMemory(CPUBackend(), CPU, KEPT).connect(torch.nn.Linear(1, 1))
