"""What the forward and the backward of Triton's attention share: tasks, rows of a head, scores and their mask.

Shapes in these kernels: H is the head size and WIDTH the power of two that holds it; scores are in base 2, since a
device has ``exp2`` in hardware: a softmax is the same in any base.
"""

import triton
import triton.language as tl


@triton.jit
def share(tasks: tl.tensor) -> tl.tensor:
    """How many of the tasks are this program's."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    turns = tasks // programs
    position = tl.where(turns % 2 == 1, programs - 1 - program, program)
    return turns + tl.where(position < tasks % programs, 1, 0)


@triton.jit
def task_of(turn: tl.tensor) -> tl.tensor:
    """This program's task at its ``turn``.

    Programs take turns there and back: tasks come with the longest first, so a fixed order would give the first
    program the longest of every turn.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    return turn * programs + tl.where(turn % 2 == 1, programs - 1 - program, program)


@triton.jit
def read_tile(
    table_ptr: tl.tensor, tile: tl.tensor, FIELDS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """``(first query token, queries, first key token, keys, start of the tile)``."""
    row_ptr = table_ptr + tile * FIELDS
    return (
        tl.load(row_ptr).to(tl.int64),
        tl.load(row_ptr + 1),
        tl.load(row_ptr + 2).to(tl.int64),
        tl.load(row_ptr + 3),
        tl.load(row_ptr + 4),
    )


@triton.jit
def load_rows(
    ptr: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    stride: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
    CHECKED: tl.constexpr,
) -> tl.tensor:
    """Rows ``first ...`` of ``[rows, H]`` as ``[ROWS, WIDTH]``, zeros beyond H and, if CHECKED, from ``stop`` on."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    ptrs = ptr + first.to(tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    if CHECKED and H != WIDTH:
        return tl.load(ptrs, mask=(rows[:, None] < stop - first) & (columns[None, :] < H), other=0.0)
    elif CHECKED:
        return tl.load(ptrs, mask=rows[:, None] < stop - first, other=0.0)
    elif H != WIDTH:
        return tl.load(ptrs, mask=columns[None, :] < H, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_rows(
    ptr: tl.tensor,
    values: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    stride: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    H: tl.constexpr,
) -> None:
    """The reverse of ``load_rows``."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    ptrs = ptr + first.to(tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    mask = (rows[:, None] < stop - first) & (columns[None, :] < H)
    tl.store(ptrs, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def keys_seen(
    start: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    window: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Which blocks of KEYS keys the QUERIES queries from ``start`` on see.

    Returns:
        ``(first, whole_first, whole_stop, stop)``: the blocks ``first ... stop - 1`` are seen by some of the queries,
        and those from ``whole_first`` to ``whole_stop - 1`` by all of them.
    """
    ahead = keys - queries
    last = tl.minimum(start + QUERIES, queries) - 1
    low, whole_low, whole_high, high = 0, 0, keys, keys
    if CAUSAL:
        whole_high = tl.maximum(start + ahead + 1, 0)
        high = tl.maximum(last + ahead + 1, 0)
    if WINDOW:
        low = tl.maximum(start + ahead - window + 1, 0)
        whole_low = tl.maximum(last + ahead - window + 1, 0)
    first, stop = low // KEYS, tl.cdiv(high, KEYS)
    whole_first = tl.minimum(tl.cdiv(whole_low, KEYS), stop)
    whole_stop = tl.maximum(whole_high // KEYS, whole_first)
    return first, whole_first, whole_stop, stop


@triton.jit
def queries_seeing(
    start: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    window: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The same for the KEYS keys from ``start`` on and the blocks of QUERIES queries that see them."""
    ahead = keys - queries
    last = tl.minimum(start + KEYS, keys) - 1
    low, whole_low, whole_high, high = 0, 0, queries, queries
    if CAUSAL:
        low = tl.minimum(tl.maximum(start - ahead, 0), queries)
        whole_low = tl.maximum(last - ahead, 0)
    if WINDOW:
        whole_high = tl.minimum(tl.maximum(start - ahead + window, 0), queries)
        high = tl.minimum(tl.maximum(last - ahead + window, 0), queries)
    first, stop = low // QUERIES, tl.cdiv(high, QUERIES)
    whole_first = tl.minimum(tl.cdiv(whole_low, QUERIES), stop)
    whole_stop = tl.maximum(whole_high // QUERIES, whole_first)
    return first, whole_first, whole_stop, stop


@triton.jit
def visible(
    query: tl.tensor,
    key: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    window: tl.tensor,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tl.tensor:
    """Whether ``query`` sees ``key``, both counted in their document; they broadcast."""
    seen = (query < queries) & (key < keys)
    if CAUSAL:
        seen = seen & (key <= query + (keys - queries))
    if WINDOW:
        seen = seen & (key > query + (keys - queries - window))
    return seen


@triton.jit
def tanh(x: tl.tensor, EXACT: tl.constexpr) -> tl.tensor:
    """Hyperbolic tangent.

    Near 0 the difference below loses digits, by at most 6e-8 in all. Where that matters (EXACT) the series serves
    there, whose first missing term is 1e-8 of the sum at 0.25.
    """
    result = 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268))  # 2 log2(e)
    if EXACT:
        y = x * x
        series = x * (1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 + y * (-17.0 / 315.0 + y * (62.0 / 2835.0)))))
        result = tl.where(y < 0.0625, series, result)
    return result
