"""Backward of Triton's attention: probabilities computed again from the log-sum-exp (Dao, 2023, algorithm 2).

Two kernels, one that owns a tile of queries and sums their gradient over blocks of keys, one that owns a tile of keys
and sums theirs over blocks of queries. Each computes the scores for itself: sums stay in registers and in a fixed
order, where one kernel for both would need atomic additions, whose order changes from run to run.

Blocks without a mask come first, as in the forward.
"""

import triton
import triton.language as tl

from evocore.kernels.attention.triton_scores import (
    keys_seen,
    load_rows,
    queries_seeing,
    read_tile,
    share,
    store_rows,
    tanh,
    task_of,
    visible,
)


@triton.jit(do_not_specialize=["tokens", "lse_token", "lse_head"])
def statistics_kernel(
    grad_ptr, out_ptr, lse_ptr, base_ptr, delta_ptr, tokens, heads,
    grad_token, grad_head, out_token, out_head, lse_token, lse_head,
    H: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What the other kernels need of each query, ``[N, T]``.

    ``delta`` is the sum over H of output times gradient, ``base`` the log-sum-exp in base 2, plus infinity for a
    query that sees no key: ``exp2(score - base)`` is then 0 and never ``-inf - -inf``.
    """
    for turn in range(share(tl.cdiv(tokens, ROWS) * heads)):
        task = task_of(turn)
        start, head = (task // heads) * ROWS, (task % heads).to(tl.int64)
        grad = load_rows(grad_ptr + head * grad_head, start, tokens, grad_token, ROWS, WIDTH, H, True)
        out = load_rows(out_ptr + head * out_head, start, tokens, out_token, ROWS, WIDTH, H, True)
        token = start + tl.arange(0, ROWS)
        lse_ptrs = lse_ptr + token.to(tl.int64) * lse_token + head * lse_head
        lse = tl.load(lse_ptrs, mask=token < tokens, other=0.0).to(tl.float32)
        base = tl.where(lse == -float("inf"), float("inf"), lse * 1.4426950408889634)
        target = head * tokens + token
        tl.store(base_ptr + target, base, mask=token < tokens)
        tl.store(delta_ptr + target, tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1), mask=token < tokens)


@triton.jit(do_not_specialize=["tiles", "tokens"])
def queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, base_ptr, delta_ptr, grad_q_ptr, table_ptr, tiles, tokens, heads, group,
    grad_token, grad_head, q_token, q_head, k_token, k_head, v_token, v_head, grad_q_token, grad_q_head,
    scale, inner, outer, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the queries; a task is a tile of them and a head. Scores as in the forward."""
    for turn in range(share(tiles * heads)):
        task = task_of(turn)
        q_first, queries, k_first, keys, start = read_tile(table_ptr, task // heads, FIELDS)
        head = (task % heads).to(tl.int64)
        k_base = k_ptr + k_first * k_token + (head // group) * k_head
        v_base = v_ptr + k_first * v_token + (head // group) * v_head
        q = load_rows(
            q_ptr + q_first * q_token + head * q_head, start, queries, q_token, QUERIES, WIDTH, H, True
        )  # fmt: skip
        grad = load_rows(
            grad_ptr + q_first * grad_token + head * grad_head, start, queries, grad_token, QUERIES, WIDTH, H, True
        )  # fmt: skip
        query = start + tl.arange(0, QUERIES)
        statistic = head * tokens + q_first + query
        base = tl.load(base_ptr + statistic, mask=query < queries, other=float("inf"))
        delta = tl.load(delta_ptr + statistic, mask=query < queries, other=0.0)

        grad_q = tl.zeros((QUERIES, WIDTH), tl.float32)
        first, whole_first, whole_stop, stop = keys_seen(
            start, queries, keys, window, QUERIES, KEYS, CAUSAL, WINDOW
        )  # fmt: skip
        grad_q = _sum_over_keys(
            grad_q, q, grad, base, delta, query, queries, k_base, v_base, keys, k_token, v_token,
            inner, outer, window,
            whole_first, whole_stop, whole_stop, 0,
            False, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, KEYS,
        )  # fmt: skip
        grad_q = _sum_over_keys(
            grad_q, q, grad, base, delta, query, queries, k_base, v_base, keys, k_token, v_token,
            inner, outer, window,
            first, stop - (whole_stop - whole_first), whole_first, whole_stop - whole_first,
            True, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, KEYS,
        )  # fmt: skip
        target_ptr = grad_q_ptr + q_first * grad_q_token + head * grad_q_head
        store_rows(target_ptr, grad_q * scale, start, queries, grad_q_token, QUERIES, WIDTH, H)


@triton.jit
def _sum_over_keys(
    grad_q, q, grad, base, delta, query, queries, k_base, v_base, keys, k_token, v_token, inner, outer, window,
    first, stop, gap, skipped,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Blocks of keys from ``first`` to ``stop``, ``skipped`` of them left out from ``gap`` on, as in the forward."""
    for index in range(first, stop):
        block = index
        if MASKED:
            block = index + tl.where(index >= gap, skipped, 0)
        k_start = block * KEYS
        k = load_rows(k_base, k_start, keys, k_token, KEYS, WIDTH, H, MASKED)
        v = load_rows(v_base, k_start, keys, v_token, KEYS, WIDTH, H, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            scores = tanh(scores * inner, EXACT)
        probs = tl.exp2(scores * outer - base[:, None])
        if MASKED:
            key = k_start + tl.arange(0, KEYS)
            seen = visible(query[:, None], key[None, :], queries, keys, window, CAUSAL, WINDOW)
            probs = tl.where(seen, probs, 0.0)
        grad_probs = tl.dot(grad, tl.trans(v), input_precision="ieee")
        slope = probs * (grad_probs - delta[:, None])
        if SOFTCAP:
            slope = slope * (1.0 - scores * scores)
        grad_q = tl.dot(slope.to(k.dtype), k, grad_q, input_precision="ieee")
    return grad_q


@triton.jit(do_not_specialize=["tiles", "tokens"])
def keys_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, base_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, table_ptr,
    tiles, tokens, kv_heads, group,
    grad_token, grad_head, q_token, q_head, k_token, k_head, v_token, v_head,
    grad_k_token, grad_k_head, grad_v_token, grad_v_head,
    scale, inner, outer, window,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of keys and values; a task is a tile of them and a key-value head, with its query heads."""
    for turn in range(share(tiles * kv_heads)):
        task = task_of(turn)
        q_first, queries, k_first, keys, start = read_tile(table_ptr, task // kv_heads, FIELDS)
        kv_head = (task % kv_heads).to(tl.int64)
        k = load_rows(
            k_ptr + k_first * k_token + kv_head * k_head, start, keys, k_token, KEYS, WIDTH, H, True
        )  # fmt: skip
        v = load_rows(
            v_ptr + k_first * v_token + kv_head * v_head, start, keys, v_token, KEYS, WIDTH, H, True
        )  # fmt: skip
        key = start + tl.arange(0, KEYS)
        grad_k = tl.zeros((KEYS, WIDTH), tl.float32)
        grad_v = tl.zeros((KEYS, WIDTH), tl.float32)
        first, whole_first, whole_stop, stop = queries_seeing(
            start, queries, keys, window, QUERIES, KEYS, CAUSAL, WINDOW
        )  # fmt: skip
        for member in range(group):
            head = kv_head * group + member
            q_base = q_ptr + q_first * q_token + head * q_head
            grad_base = grad_ptr + q_first * grad_token + head * grad_head
            statistic = head * tokens + q_first
            grad_k, grad_v = _sum_over_queries(
                grad_k, grad_v, k, v, key, keys, q_base, grad_base, base_ptr + statistic, delta_ptr + statistic,
                queries, q_token, grad_token, inner, outer, window,
                whole_first, whole_stop, whole_stop, 0,
                False, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, QUERIES,
            )  # fmt: skip
            grad_k, grad_v = _sum_over_queries(
                grad_k, grad_v, k, v, key, keys, q_base, grad_base, base_ptr + statistic, delta_ptr + statistic,
                queries, q_token, grad_token, inner, outer, window,
                first, stop - (whole_stop - whole_first), whole_first, whole_stop - whole_first,
                True, CAUSAL, WINDOW, SOFTCAP, EXACT, H, WIDTH, QUERIES,
            )  # fmt: skip
        k_target = grad_k_ptr + k_first * grad_k_token + kv_head * grad_k_head
        v_target = grad_v_ptr + k_first * grad_v_token + kv_head * grad_v_head
        store_rows(k_target, grad_k * scale, start, keys, grad_k_token, KEYS, WIDTH, H)
        store_rows(v_target, grad_v, start, keys, grad_v_token, KEYS, WIDTH, H)


@triton.jit
def _sum_over_queries(
    grad_k, grad_v, k, v, key, keys, q_base, grad_base, base_ptr, delta_ptr,
    queries, q_token, grad_token, inner, outer, window,
    first, stop, gap, skipped,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Blocks of queries likewise. Scores lie with a key in a row, so that no product needs them transposed."""
    for index in range(first, stop):
        block = index
        if MASKED:
            block = index + tl.where(index >= gap, skipped, 0)
        q_start = block * QUERIES
        query = q_start + tl.arange(0, QUERIES)
        q = load_rows(q_base, q_start, queries, q_token, QUERIES, WIDTH, H, MASKED)
        if MASKED:
            base = tl.load(base_ptr + query, mask=query < queries, other=float("inf"))
        else:
            base = tl.load(base_ptr + query)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        if SOFTCAP:
            scores = tanh(scores * inner, EXACT)
        probs = tl.exp2(scores * outer - base[None, :])
        if MASKED:
            seen = visible(query[None, :], key[:, None], queries, keys, window, CAUSAL, WINDOW)
            probs = tl.where(seen, probs, 0.0)
        grad = load_rows(grad_base, q_start, queries, grad_token, QUERIES, WIDTH, H, MASKED)
        grad_v = tl.dot(probs.to(grad.dtype), grad, grad_v, input_precision="ieee")
        if MASKED:
            delta = tl.load(delta_ptr + query, mask=query < queries, other=0.0)
        else:
            delta = tl.load(delta_ptr + query)
        grad_probs = tl.dot(v, tl.trans(grad), input_precision="ieee")
        slope = probs * (grad_probs - delta[None, :])
        if SOFTCAP:
            slope = slope * (1.0 - scores * scores)
        grad_k = tl.dot(slope.to(q.dtype), q, grad_k, input_precision="ieee")
    return grad_k, grad_v
