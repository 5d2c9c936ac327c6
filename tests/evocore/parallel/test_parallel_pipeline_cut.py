"""Models cut for a pipeline: what a stage holds, and that its chunks together compute what the whole does."""

import pytest
import torch

from evocore.config import load_values
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import Numerics
from evocore.nn.initialise import initialise
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.parallel.layout import Layout
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan

TOKENS = 6


def decoder(residual=torch.float32, dtype=torch.float32, **options):
    spec = DecoderSpec(
        vocab=16, hidden=8, layers=4, heads=2, kv_heads=2, head_dim=4, feed_forward=16,
        numerics=Numerics(dtype, dtype, residual), **options,
    )  # fmt: skip
    model = Decoder(spec)
    initialise(model, 1)
    bind_kernels(model, resolve(model_requests(model), load_plugins().kernels(), "cpu", {}))
    return model


def inputs():
    tokens = torch.arange(TOKENS) % 5
    return tokens, torch.tensor([0, 1, 2, 3, 0, 1]), CuSeqlens.of([0, 4, 6], torch.device("cpu"))


@pytest.mark.parametrize(
    ("dtype", "residual", "tensors"),
    [(torch.float32, torch.float32, 1), (torch.bfloat16, torch.bfloat16, 1), (torch.bfloat16, torch.float32, 2)],
)
def test_chunks_compute_what_the_whole_computes_bit_for_bit(dtype, residual, tensors):
    whole = decoder(residual, dtype)
    first, second = whole.stage([range(0, 1), range(3, 4)]), whole.stage([range(1, 3)])

    carried = first(*inputs(), layers=range(0, 1))
    assert [(one.shape, one.dtype) for one in carried] == [(one.shape, one.dtype) for one in whole.carried(TOKENS)]
    assert len(carried) == tensors
    carried = second(*inputs(), layers=range(1, 3), carried=carried)
    assert torch.equal(first(*inputs(), layers=range(3, 4), carried=carried), whole(*inputs()))


def test_a_stage_has_the_names_of_the_whole_and_no_others_layers():
    whole = decoder()
    middle, ends = whole.stage([range(1, 3)]), whole.stage([range(0, 1), range(3, 4)])

    assert {name.split(".")[1] for name, _ in middle.named_parameters()} == {"1", "2"}
    held = {name for name, _ in ends.named_parameters()}
    assert held | {name for name, _ in middle.named_parameters()} == {name for name, _ in whole.named_parameters()}
    assert {"tok_embeddings.weight", "norm.weight", "output.weight"} < held
    assert middle.matmul_parameters() + ends.matmul_parameters() == whole.matmul_parameters()
    assert len(whole.layers) == 4 and len(middle.attention_shapes()) == 2


def test_recomputation_is_shared_out_with_the_layers():
    whole = decoder(recompute_layers=2)

    assert [whole.stage([range(*edges)]).recomputed_attention_layers() for edges in ((0, 2), (2, 4))] == [1, 1]
    assert [whole.stage([range(*edges)]).recomputed_attention_layers() for edges in ((0, 1), (1, 4))] == [0, 2]


def test_a_tied_head_keeps_its_name_on_the_last_stage():
    whole = decoder(tied=True)
    last = whole.stage([range(2, 4)])

    assert "output.weight" not in dict(whole.named_parameters())
    assert last.output.weight is last.tok_embeddings.weight is whole.tok_embeddings.weight
    assert "tok_embeddings.weight" in dict(last.named_parameters())
    assert "tok_embeddings.weight" not in dict(whole.stage([range(1, 2)]).named_parameters())


def test_a_plan_tells_the_layers_of_each_stage_and_counts_its_own(config):
    plans = [make_plan(config, load_plugins(), layout=Layout.of(config, 2, rank)) for rank in (0, 1)]
    layouts = [plan.layout.pipeline_report() for plan in plans]

    assert layouts[0] == layouts[1] == ["pipeline ZBV, 2 stages of layers 0-0 and 3-4, 1-1 and 2-2"]
    assert plans[0].resolution.digest() == plans[1].resolution.digest()
    assert plans[0].parameters == plans[1].parameters
    lengths = [3, 5]
    one = make_plan(config, load_plugins()).flops.training(lengths)
    assert sum(plan.flops.training(lengths).model for plan in plans) == pytest.approx(one.model)


@pytest.fixture
def config():
    values = dict(
        JOB_NAME="cut", model_type="INTERNLM2", data=dict(seq_len=8, micro_bsz=1, micro_num=2, total_steps=1),
        model=dict(vocab_size=16, hidden_size=8, num_layers=5, num_attention_heads=2, mlp_ratio=2, multiple_of=16,
                   dtype="torch.float32"),
        parallel=dict(pipeline=dict(size=2, mode="ZBV", layers=[1, 1, 1, 2])),
        ckpt=dict(enable_save_ckpt=False),
    )  # fmt: skip
    return load_values(values).config
