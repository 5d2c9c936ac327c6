"""The aclnn functions that the stand-in offers, and the C source of libopapi.so made from them.

torch_npu finds aclnn functions by name and casts them to the types of the arguments that it has at hand, so nothing
but this table says what a function takes: the orders are those of CANN's public documentation. A function that is not
here is missing for torch_npu too, which then says so by name.

Kinds: ``tensor``, ``tensors``, ``ints`` and ``scalar`` are pointers and may be null; ``type`` is an aclDataType.
"""

from __future__ import annotations

ATTENTION = (
    "tensor pse, tensor drop_mask, tensor padding_mask, tensor mask, {more} ints prefix, {lengths}"
    "double scale, double keep_prob, int before, int after, int heads, text layout, int inner_precise, "
    "int sparse_mode"
)
LENGTHS = "ints query_lengths, ints key_lengths, "
STATISTICS = "tensor softmax_max, tensor softmax_sum, tensor softmax, tensor attention,"
ATTENTION_OUT = "tensor softmax_max, tensor softmax_sum, tensor softmax, tensor out"
ATTENTION_GRADS = "tensor dq, tensor dk, tensor dv, tensor dpse"
GROUPED = (
    "tensors x, tensors weight, tensors bias, tensors scale, tensors offset, tensors antiquant_scale, "
    "tensors antiquant_offset, tensors per_token_scale, tensor group_list, tensors activation_input, "
    "tensors activation_scale, tensors activation_offset, int split_item, int group_type, int group_list_type, "
    "int activation, "
)
GROUPED_OUT = "tensors out, tensors activation_out, tensors dynamic_scale_out"

SIGNATURES = {
    # attention
    "aclnnFlashAttentionScore": (
        "tensor q, tensor k, tensor v, " + ATTENTION.format(more="", lengths="") + ", " + ATTENTION_OUT
    ),
    "aclnnFlashAttentionVarLenScore": (
        "tensor q, tensor k, tensor v, " + ATTENTION.format(more="", lengths=LENGTHS) + ", " + ATTENTION_OUT
    ),
    "aclnnFlashAttentionVarLenScoreV4": (
        "tensor q, tensor k, tensor v, "
        + ATTENTION.format(more="", lengths=LENGTHS)
        + ", text statistics_layout, "
        + ATTENTION_OUT
    ),
    "aclnnFlashAttentionScoreGrad": (
        "tensor q, tensor k, tensor v, tensor dy, "
        + ATTENTION.format(more=STATISTICS, lengths="")
        + ", "
        + ATTENTION_GRADS
    ),
    "aclnnFlashAttentionUnpaddingScoreGrad": (
        "tensor q, tensor k, tensor v, tensor dy, "
        + ATTENTION.format(more=STATISTICS, lengths=LENGTHS)
        + ", "
        + ATTENTION_GRADS
    ),
    "aclnnFlashAttentionUnpaddingScoreGradV4": (
        "tensor q, tensor k, tensor v, tensor dy, "
        + ATTENTION.format(more=STATISTICS, lengths=LENGTHS)
        + ", "
        + ATTENTION_GRADS
        + ", text statistics_layout"
    ),
    # norms, rotary embedding, activations
    "aclnnRmsNorm": "tensor x, tensor gamma, double epsilon, tensor y, tensor rstd",
    "aclnnRmsNormGrad": "tensor dy, tensor x, tensor rstd, tensor gamma, tensor dx, tensor dgamma",
    "aclnnAddRmsNorm": (
        "tensor x, tensor residual, tensor gamma, double epsilon, tensor y, tensor rstd, tensor total"
    ),
    "aclnnRotaryPositionEmbedding": "tensor x, tensor cos, tensor sin, int mode, tensor out",
    "aclnnRotaryPositionEmbeddingGrad": (
        "tensor dy, tensor cos, tensor sin, tensor x, int mode, tensor dx, tensor dcos, tensor dsin"
    ),
    "aclnnSwiGlu": "tensor x, int dim, tensor out",
    "aclnnSwiGluGrad": "tensor dy, tensor x, int dim, tensor dx",
    "aclnnGeGluV3": "tensor x, int dim, int approximate, bool activate_left, tensor out, tensor gelu_out",
    "aclnnGeGluV3Backward": (
        "tensor dy, tensor x, tensor gelu_out, int dim, int approximate, bool activate_left, tensor dx"
    ),
    # experts
    "aclnnGroupedMatmulV4": GROUPED + GROUPED_OUT,
    "aclnnGroupedMatmulV5": GROUPED + "ints tuning, " + GROUPED_OUT,
    "aclnnMoeTokenPermute": (
        "tensor tokens, tensor indices, int out_tokens, bool padded, tensor permuted, tensor sorted_indices"
    ),
    "aclnnMoeTokenPermuteGrad": "tensor dpermuted, tensor sorted_indices, int top_k, bool padded, tensor dtokens",
    "aclnnMoeTokenUnpermute": (
        "tensor permuted, tensor sorted_indices, tensor probs, bool padded, ints restore_shape, tensor out"
    ),
    "aclnnMoeTokenUnpermuteGrad": (
        "tensor permuted, tensor dy, tensor sorted_indices, tensor probs, bool padded, ints restore_shape, "
        "tensor dpermuted, tensor dprobs"
    ),
    # optimizer
    "aclnnApplyAdamWV2": (
        "tensor parameter, tensor first, tensor second, tensor largest, tensor grad, tensor step, float lr, "
        "float beta1, float beta2, float weight_decay, float epsilon, bool amsgrad, bool maximize"
    ),
    # what torch_npu calls by itself beside the kernels of aten
    "aclnnInplaceZero": "tensor x",
    "aclnnInplaceOne": "tensor x",
    "aclnnInplaceFillScalar": "tensor x, scalar value",
    "aclnnInplaceCopy": "tensor x, tensor source",
    "aclnnCast": "tensor x, type to, tensor out",
    "aclnnCat": "tensors xs, int dim, tensor out",
    "aclnnConstantPadNd": "tensor x, ints padding, scalar value, tensor out",
    "aclnnDropoutGenMaskV2": "ints shape, double probability, int seed, int offset, type of, tensor mask",
    "aclnnDropoutDoMask": "tensor x, tensor mask, double probability, tensor out",
}

C_TYPES = {
    "tensor": "void *",
    "tensors": "void *",
    "ints": "void *",
    "scalar": "void *",
    "text": "char *",
    "double": "double",
    "float": "float",
    "int": "int64_t",
    "bool": "bool",
    "type": "int",
}

HEAD = """\
/* Made by opapi_table.py: entry points of libopapi.so, each of which calls what opapi.py put into its pointer.
 * The work is done when the size of the workspace is asked for, which torch_npu does right before it runs the
 * operator. */
#include <stdbool.h>
#include <stdint.h>

#include "errors.h"

static const int NO_KERNEL = 561103; /* ACLNN_ERR_INNER_NULLPTR */
"""

ENTRY = """
int (*standin_{name})({types});

int {name}GetWorkspaceSize({parameters}, uint64_t *workspace, void **executor)
{{
    *workspace = 0;
    *executor = (void *)&standin_{name};
    if (standin_{name} == 0) {{
        standin_set_error("{name} has no kernel: the Python side of the stand-in is not active");
        return NO_KERNEL;
    }}
    return standin_{name}({arguments});
}}

int {name}(void *workspace, uint64_t size, void *executor, void *stream) {{ return 0; }}
"""


def parameters_of(name: str) -> list[tuple[str, str]]:
    """Kind and name of each parameter of an aclnn function."""
    return [(kind, parameter) for kind, parameter in (text.split() for text in SIGNATURES[name].split(","))]


def c_source() -> str:
    """The C source of all entry points."""
    parts = [HEAD]
    for name in SIGNATURES:
        parameters = parameters_of(name)
        parts.append(
            ENTRY.format(
                name=name,
                types=", ".join(C_TYPES[kind] for kind, _ in parameters),
                parameters=", ".join(f"{C_TYPES[kind]} {parameter}" for kind, parameter in parameters),
                arguments=", ".join(parameter for _, parameter in parameters),
            )
        )
    return "".join(parts)
