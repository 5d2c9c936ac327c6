"""Every byte that ranks hold between steps is in the formula, and what they gather for moments reaches its bound."""

from functools import partial

import parallel_isp_model
import pytest
from parallel_counted_cases import BY_BLOCK, BY_CALL, CASES, FUSED, Case, tensor
from parallel_counted_runs import on_paper, seen
from parallel_experts import EXPERTS, HIDDEN, WIDTH, built, inputs
from parallel_isp_model import Pretended, Rank, step
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from evocore.config.schema_parallel import Weight
from evocore.nn.experts import ExpertLinear
from evocore.parallel.expert_weights import ExpertWeights
from evocore.parallel.groups import Group
from evocore.parallel.isp.gathering import Gathering
from evocore.parallel.layout import Layout
from evocore.parallel.memory import memory
from evocore.parallel.memory.moments import experts_for_moments
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Part, Sharing
from evocore.parallel.topology import Sizes, Topology
from evocore.parallel.traffic.uses import Uses


def held(case, rank=0):
    return {one.what: one for one in on_paper(case, rank)[0].memory()}


@pytest.mark.parametrize("name", CASES)
def test_what_ranks_hold_is_what_the_formula_says(name, ranks, tmp_path):
    for rank, one in enumerate(seen(name, ranks, tmp_path)):
        assert one.stored == sum(part.bytes for part in held(CASES[name], rank).values() if not part.bound)


# --- by hand --------------------------------------------------------------------------------------------------------

ODD = dict(hidden_size=36, num_attention_heads=4, num_kv_attention_heads=4, vocab_size=52)
FEED_FORWARD, LAYERS = 80, 2  # 2 * 36, rounded up to 16


def padded(elements, unit):
    return -(-elements // unit) * unit


def odd_shapes():
    block = [36, 108 * 36, 36 * 36, 36, FEED_FORWARD * 36, FEED_FORWARD * 36, 36 * FEED_FORWARD]
    return [52 * 36, *block * LAYERS, 36, 52 * 36]


@pytest.mark.parametrize("zero", [1, 2, 4])
@pytest.mark.parametrize("dtype, itemsize", [("float32", 4), ("bfloat16", 2)])
def test_buckets_are_padded_for_each_parameter_and_for_all_of_them(zero, dtype, itemsize):
    case = Case(4, dict(zero1=dict(size=zero)), dict(model=ODD | dict(dtype=f"torch.{dtype}")))
    elements = padded(sum(padded(numel, 16) for numel in odd_shapes()), 16 * zero)
    used = sum(odd_shapes())

    of_ranks = [held(case, rank) for rank in range(zero)]

    for found in of_ranks:
        sizes = {what: one.bytes for what, one in found.items()}
        expected = {"parameters": itemsize * elements, "gradients": 4 * elements}
        expected |= {"master weights": 4 * elements // zero} if itemsize == 2 else {}
        expected |= {f"{which} moments": 4 * elements // zero for which in ("first", "second")}
        assert sizes == expected
        assert found["parameters"].padding == itemsize * (elements - used) > 0
        assert found["gradients"].padding == 4 * (elements - used)
    assert sum(found["first moments"].padding for found in of_ranks) == 4 * (elements - used)


def test_tensor_ranks_share_all_but_the_norms():
    whole, half = held(Case(1)), held(Case(2, tensor(2, "msp")))

    norms = 32 * (2 * LAYERS + 1) * 4
    assert half["parameters"].bytes == (whole["parameters"].bytes - norms) // 2 + norms
    assert half["parameters"].padding == 0


def test_flat_shards_count_their_padding():
    case = Case(4, dict(tensor=dict(size=1, mode="isp"), weight=dict(size=4)), dict(model=ODD | dict(vocab_size=40)))
    shapes = [40 * 36, *odd_shapes()[1:-1], 40 * 36]
    shards = [padded(numel, 4) // 4 for numel in shapes if numel > 36]
    norms = [36] * (2 * LAYERS + 1)

    parameters = held(case)["parameters"]

    elements = sum(padded(numel, 16) for numel in shards + norms)
    assert parameters.bytes == 4 * elements
    assert parameters.padding == 4 * (elements - sum(shapes) // 4 - sum(norms) * 3 // 4)


# --- for moments ----------------------------------------------------------------------------------------------------


BEFORE = ("wqkv", "attn", "wo", "w1")
SETTINGS = [
    {},
    *(BY_BLOCK | dict(launch_allgather_before=where) for where in BEFORE),
    BY_CALL,
    BY_CALL | dict(early_reduce_scatter_release=False),
]


class Weighing(Pretended):
    """Also knows the bytes of the unreduced tensors that exist at the start of each reduction."""

    def __init__(self):
        super().__init__()
        self.unreduced_bytes, self._sizes = [], []

    def reduce_scatter(self, shard, tensor, group=None, **options):
        handle = super().reduce_scatter(shard, tensor, group, **options)
        self._sizes.append(tensor.untyped_storage().nbytes())
        alive = [size for size, storage in zip(self._sizes, self._unreduced, strict=True) if not storage.expired()]
        self.unreduced_bytes.append(sum(alive))
        return handle


class Copies:
    """Knows which weights that calls compute with have memory of their own.

    Attributes:
        most: bytes of them that existed at a moment.
    """

    def __init__(self, rank, monkeypatch):
        self.most, alive, whole = 0, [], Gathering.whole

        def watched(gathering, layer):
            weight = whole(gathering, layer)
            if weight.data_ptr() not in rank.pretended.gathered():
                storage = weight.untyped_storage()
                alive.append((StorageWeakRef(storage), storage.nbytes()))
                self.most = max(self.most, sum(size for reference, size in alive if not reference.expired()))
            return weight

        monkeypatch.setattr(Gathering, "whole", watched)


@pytest.mark.parametrize("recomputed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fused", [{}, FUSED])
@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_there_for_moments_reaches_its_bound(settings, fused, recomputed, monkeypatch):
    monkeypatch.setattr(parallel_isp_model, "Pretended", Weighing)
    settings = settings | fused
    rank = Rank.pretended(parallel_isp_model.Case(1, 2, model=dict(checkpoint=recomputed), settings=settings))
    copies = Copies(rank, monkeypatch)

    step(rank)

    found = for_moments(rank, settings)
    assert found["gathered weights"] == max(rank.pretended.gathered_bytes)
    assert found["gradients of gathered weights"] == max(rank.pretended.unreduced_bytes)
    assert found.get("weights copied out of a common gather", 0) == copies.most
    assert (copies.most > 0) is bool(fused)


def for_moments(rank, settings, **options):
    layout = Layout(Topology(Sizes(world=2, mode="isp", weight=2)))
    sharings = {name: Sharing(Placement.whole(x.shape), "weight_data") for name, x in rank.model.named_parameters()}
    found = memory(rank.model, layout, sharings, [], weight=Weight(size=2, **settings), **options)
    assert all(one.bound for one in found)
    return {one.what: one.bytes for one in found}


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
@pytest.mark.parametrize("fused", [{}, FUSED])
@pytest.mark.parametrize("settings", [{}, BY_BLOCK, BY_CALL])
def test_kept_buffers_reach_their_bound(settings, fused, recomputed):
    settings, model = settings | fused, dict(checkpoint=recomputed)
    rank = Rank.pretended(parallel_isp_model.Case(1, 2, model=model, settings=settings, keeps_buffers=True))

    for _ in range(2):
        step(rank)

    gathered = for_moments(rank, settings, keeps_buffers=True)["gathered weights"]
    assert gathered == max(rank.pretended.gathered_bytes)
    assert 0 < sum(rank.pretended.gathered().values()) < gathered, "the head's weight is not kept"


W13 = EXPERTS * 2 * WIDTH * HIDDEN * 4
"""Bytes of the larger weight of a layer of experts."""


class WeighingExperts(Pretended):
    """Also knows the bytes of experts' weights that are whole, and of whole gradients, when they are sent."""

    def __init__(self):
        super().__init__()
        self.layers, self.gathered_most, self.unreduced_most, self._sizes = [], 0, 0, []

    def all_gather(self, output, shard, group=None, **options):
        held = [layer.buffer for layer in self.layers if layer.buffer is not None]
        self.gathered_most = max(self.gathered_most, sum(buffer.untyped_storage().nbytes() for buffer in held))
        return super().all_gather(output, shard, group, **options)

    def reduce_scatter(self, shard, tensor, group=None, **options):
        handle = super().reduce_scatter(shard, tensor, group, **options)
        self._sizes.append(tensor.untyped_storage().nbytes())
        alive = [size for size, storage in zip(self._sizes, self._unreduced, strict=True) if not storage.expired()]
        self.unreduced_most = max(self.unreduced_most, sum(alive))
        return handle


@pytest.mark.parametrize("recomputed", [0, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, dict(overlap=True), dict(overlap=True, early_reduce_scatter_release=False)],
    ids=["", "overlap", "released late"],
)
def test_experts_that_are_there_for_moments_reach_their_bound(settings, recomputed):
    model, sharings = built(lambda name: Part(0, 2 if name == "expert_weight" else 1), layers=3)
    weighing, weight = WeighingExperts(), Weight(size=2, **settings)
    weights = ExpertWeights(model, Group("expert_weight", (0, 1), 0, None, weighing), weight)
    weights.deliver = lambda parameter, gradient: None
    weighing.layers = [layer for layer in model.modules() if isinstance(layer, ExpertLinear)]
    x_TD, experts_TK, weights_TK, into_TD = inputs(4, [[0, 1], [2, 3], [4, 5], [6, 7]])
    x_TD.requires_grad_()
    for number, layer in enumerate(model.layers):
        run = partial(checkpoint, layer, use_reentrant=False) if number < recomputed else layer
        x_TD = run(x_TD, experts_TK, weights_TK)
    x_TD.backward(into_TD)
    weights.finish()

    uses = Uses((), list(model.layers), frozenset(range(recomputed)))
    found = experts_for_moments(uses, weight, 2, (0,))
    assert found["gathered weights of experts"] == weighing.gathered_most
    assert found["gradients of gathered weights of experts"] == weighing.unreduced_most + W13


@pytest.mark.parametrize("name", [name for name in CASES if "fsdp" in name])
def test_fully_sharded_matrices_that_are_whole_for_moments_reach_their_bound(name, ranks, tmp_path):
    for rank, one in enumerate(seen(name, ranks, tmp_path)):
        bound = held(CASES[name], rank)["gathered matrices"].bytes
        assert one.moments == bound or ("pp" in name and 0 < one.moments < bound)
