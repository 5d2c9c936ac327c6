"""Forward of Triton's attention: a tile of queries walks over the keys that it sees (Dao, 2023, algorithm 1).

A task is a tile of queries of one document and one head. Blocks of keys that all its queries see need no mask and are
most of the work, so they have a loop of their own. It comes first: the other way round NVIDIA's assembler loses track
of the sums between the loops and waits for each product before it starts the next.
"""

import triton
import triton.language as tl

from evocore.kernels.attention.triton_scores import (
    keys_seen,
    load_rows,
    read_tile,
    share,
    store_rows,
    tanh,
    task_of,
    visible,
)


@triton.jit(do_not_specialize=["tiles", "lse_stride"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, table_ptr, tiles, heads, group,
    q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, lse_stride,
    inner, outer, window,
    NEGATE: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Write the output, ``[T, N, H]``, and the log-sum-exp, ``[N, T]``.

    A score is ``outer * x`` or, with SOFTCAP, ``outer * tanh(inner * x)``, of the product x of a query with a key;
    ``inner`` and ``outer`` are not negative, NEGATE is for a negative scale. Strides are in elements.
    """
    for turn in range(share(tiles * heads)):
        task = task_of(turn)
        q_first, queries, k_first, keys, start = read_tile(table_ptr, task // heads, FIELDS)
        head = (task % heads).to(tl.int64)
        q_base = q_ptr + q_first * q_token + head * q_head
        k_base = k_ptr + k_first * k_token + (head // group) * k_head
        v_base = v_ptr + k_first * v_token + (head // group) * v_head
        q = load_rows(q_base, start, queries, q_token, QUERIES, WIDTH, H, True)
        if NEGATE:
            q = -q
        query = start + tl.arange(0, QUERIES)

        total = tl.zeros((QUERIES,), tl.float32)
        top = tl.zeros((QUERIES,), tl.float32) - float("inf")
        mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
        first, whole_first, whole_stop, stop = keys_seen(
            start, queries, keys, window, QUERIES, KEYS, CAUSAL, WINDOW
        )  # fmt: skip
        mixed, top, total = _mix(
            mixed, top, total, q, query, queries, k_base, v_base, keys, k_token, v_token, inner, outer, window,
            whole_first, whole_stop, whole_stop, 0,
            False, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, KEYS,
        )  # fmt: skip
        mixed, top, total = _mix(
            mixed, top, total, q, query, queries, k_base, v_base, keys, k_token, v_token, inner, outer, window,
            first, stop - (whole_stop - whole_first), whole_first, whole_stop - whole_first,
            True, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, KEYS,
        )  # fmt: skip

        total = tl.where(total == 0.0, 1.0, total)  # of a query that sees no key, whose ``top`` is minus infinity
        out_base = out_ptr + q_first * out_token + head * out_head
        store_rows(out_base, mixed / total[:, None], start, queries, out_token, QUERIES, WIDTH, H)
        lse_ptrs = lse_ptr + head * lse_stride + q_first + query
        tl.store(lse_ptrs, (top + tl.log2(total)) * 0.6931471805599453, mask=query < queries)


@triton.jit
def _mix(
    mixed, top, total, q, query, queries, k_base, v_base, keys, k_token, v_token, inner, outer, window,
    first, stop, gap, skipped,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Online softmax over so many blocks of keys as lie between ``first`` and ``stop``.

    From block ``gap`` on ``skipped`` blocks are left out: those at both edges then share one loop.
    """
    for index in range(first, stop):
        block = index
        if MASKED:
            block = index + tl.where(index >= gap, skipped, 0)
        k_start = block * KEYS
        k = load_rows(k_base, k_start, keys, k_token, KEYS, WIDTH, H, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            scores = tanh(scores * inner, EXACT)
        if MASKED:
            key = k_start + tl.arange(0, KEYS)
            seen = visible(query[:, None], key[None, :], queries, keys, window, CAUSAL, WINDOW)
            scores = tl.where(seen, scores * outer, -float("inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(new_top == -float("inf"), 0.0, new_top)  # nothing seen yet: -inf - -inf is no number
            probs = tl.exp2(scores - base[:, None])
            fade = tl.exp2(top - base)
        else:
            new_top = tl.maximum(top, tl.max(scores, 1) * outer)
            probs = tl.exp2(scores * outer - new_top[:, None])
            fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(probs, 1)
        v = load_rows(v_base, k_start, keys, v_token, KEYS, WIDTH, H, MASKED)
        mixed = tl.dot(probs.to(v.dtype), v, mixed * fade[:, None], input_precision="ieee")
        top = new_top
    return mixed, top, total
