"""Weight maps: every row once, in both directions, whatever is fused, grouped, stacked or dealt out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.nn.weight_map import Part, Piece, Rows, Rule, WeightMap, to_ours, to_theirs
from evocore.nn.weight_rules import Heads, experts, grouped, packed, projections, same, separate, sliced, stacked

WIDTH = 3
PLACES = {
    "separate": lambda side: separate(*(f"{side}.{{layer}}.{name}.{{kind}}" for name in "qkv")),
    "packed": lambda side: packed(f"{side}.{{layer}}.qkv.{{kind}}"),
    "grouped": lambda side: grouped(f"{side}.{{layer}}.qkv.{{kind}}"),
}


def numbered(shapes):
    """Tensors of which no two elements are alike."""
    found, start = {}, 0
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        found[name] = torch.arange(start, start + count, dtype=torch.float64).view(shape)
        start += count
    return found


def attention_shapes(heads, place):
    rows = {"q": heads.heads, "k": heads.kv_heads, "v": heads.kv_heads}
    rows = {name: count * heads.head_dim for name, count in rows.items()}
    if place != "separate":
        rows = {"qkv": sum(rows.values())}
    shapes = {f"ours.7.{name}.weight": (count, WIDTH) for name, count in rows.items()}
    return shapes | {f"ours.7.{name}.bias": (count,) for name, count in rows.items()}


@st.composite
def some_heads(draw):
    kv_heads, queries, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Heads(kv_heads * queries, kv_heads, 2 * pairs, draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(some_heads(), st.sampled_from(sorted(PLACES)), st.sampled_from(sorted(PLACES)))
def test_heads_come_back_from_any_place(heads, mine, yours):
    shapes = attention_shapes(heads, mine)
    match = WeightMap(tuple(projections(heads, PLACES[mine]("ours"), PLACES[yours]("theirs")))).match(shapes)
    ours = numbered(shapes)

    theirs = to_theirs(match, ours)

    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == match.theirs
    assert sorted(torch.cat([t.flatten() for t in theirs.values()]).tolist()) == list(
        range(sum(tensor.numel() for tensor in ours.values()))
    )
    back = to_ours(match, theirs)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


def test_grouped_rows_are_a_heads_queries_then_its_key_and_value():
    heads = Heads(6, 2, 4)
    shapes = attention_shapes(heads, "grouped")
    ours = numbered(shapes)
    match = WeightMap(tuple(projections(heads, PLACES["grouped"]("ours"), PLACES["separate"]("theirs")))).match(
        shapes
    )

    theirs = to_theirs(match, ours)

    groups = ours["ours.7.qkv.weight"].view(2, 3 + 2, 4, WIDTH)
    assert torch.equal(theirs["theirs.7.q.weight"], groups[:, :3].flatten(0, 2))
    assert torch.equal(theirs["theirs.7.k.weight"], groups[:, 3].flatten(0, 1))
    assert torch.equal(theirs["theirs.7.v.weight"], groups[:, 4].flatten(0, 1))


def test_pairs_side_by_side_are_dealt_to_the_halves_of_a_head_and_values_are_not():
    heads = Heads(2, 1, 6, interleaved=True)
    shapes = attention_shapes(heads, "separate")
    ours = numbered(shapes)
    match = WeightMap(tuple(projections(heads, PLACES["separate"]("ours"), PLACES["packed"]("theirs")))).match(shapes)

    theirs = to_theirs(match, ours)["theirs.7.qkv.bias"]

    dealt = [0, 2, 4, 1, 3, 5]
    q, k, v = (ours[f"ours.7.{name}.bias"] for name in "qkv")
    assert torch.equal(theirs, torch.cat([q[:6][dealt], q[6:][dealt], k[dealt], v]))


def test_stacks_slices_and_experts():
    weights = WeightMap(
        (
            stacked("ours.{layer}.gate_up.weight", "gate.{layer}", "up.{layer}"),
            sliced("ours.{layer}.left.weight", "both.{layer}", 0, 2),
            sliced("ours.{layer}.right.weight", "both.{layer}", 1, 2),
            experts("ours.{layer}.w13.weight", 2, "{layer}.{expert}.w1", "{layer}.{expert}.w3"),
            same("ours.norm", "norm"),
        )
    )
    ours = numbered(
        {"ours.0.gate_up.weight": (4, 3), "ours.0.left.weight": (2, 3), "ours.0.right.weight": (2, 3)}
        | {"ours.12.w13.weight": (2, 2, 5, 3), "ours.norm": (3,)}
    )
    match = weights.match({name: tuple(tensor.shape) for name, tensor in ours.items()})

    theirs = to_theirs(match, ours)

    assert torch.equal(theirs["gate.0"], ours["ours.0.gate_up.weight"][:2])
    assert torch.equal(theirs["up.0"], ours["ours.0.gate_up.weight"][2:])
    assert torch.equal(theirs["both.0"], torch.cat([ours["ours.0.left.weight"], ours["ours.0.right.weight"]]))
    assert torch.equal(theirs["12.1.w1"], ours["ours.12.w13.weight"][1, 0])
    assert torch.equal(theirs["12.0.w3"], ours["ours.12.w13.weight"][0, 1])
    assert torch.equal(theirs["norm"], ours["ours.norm"])
    assert all(torch.equal(tensor, ours[name]) for name, tensor in to_ours(match, theirs).items())


def test_normalised_rows_are_written_at_length_one_and_read_as_they_are():
    match = WeightMap((same("head", "lm_head", normalised=True),)).match({"head": (4, 3)})
    head = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    theirs = to_theirs(match, {"head": head})

    torch.testing.assert_close(theirs["lm_head"], head / head.norm(dim=1, keepdim=True))
    assert torch.equal(to_ours(match, {"lm_head": head})["head"], head)


def fixed(*parts):
    return Rule("x", lambda rows: parts)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([], "no rules of the weight map match x"),
        ([same("x", "a"), same("{kind}", "a"), same("x", "b")], "2 rules of the weight map match x"),
        ([fixed(Part("a", range(3)))], "row 3 of x is in 0 pieces"),
        ([fixed(Part("a", range(4)), Part("b", range(1, 3)))], "row 1 of x is in 2 pieces"),
        ([fixed(Part("a", range(2), range(2)), Part("a", range(2, 4), range(1, 3)))], "row 1 of a is in 2 pieces"),
        ([fixed(Part("a", range(4), range(1, 5)))], "a has 4 rows; the weight map names range(1, 5)"),
        ([fixed(Part("a", range(4), range(3)))], "differ in their number of rows"),
        ([stacked("x", "a", "b", "c")], "4 rows of x are not 3 equal parts"),
    ],
    ids=range(8),
)
def test_a_map_that_forgets_or_repeats_rows_is_refused(rules, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(").replace(")", r"\)")):
        WeightMap(tuple(rules)).match({"x": (4, 3)})


def test_rows_of_one_of_theirs_have_one_width():
    rules = Part("a", None, range(2)), Part("a", None, range(2, 4))
    weights = WeightMap((Rule("x", lambda rows: [rules[0]]), Rule("y", lambda rows: [rules[1]])))
    with pytest.raises(ValueError, match="rows of several widths"):
        weights.match({"x": (2, 3), "y": (2, 4)})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pieces_are_found_by_the_rows_that_they_hold(data):
    heads = data.draw(some_heads())
    shapes = attention_shapes(heads, "grouped")
    match = WeightMap(tuple(projections(heads, PLACES["grouped"]("ours"), PLACES["separate"]("theirs")))).match(
        shapes
    )
    start = data.draw(st.integers(0, shapes["ours.7.qkv.weight"][0] - 1))
    stop = data.draw(st.integers(start + 1, shapes["ours.7.qkv.weight"][0]))

    found = list(match.of_ours["ours.7.qkv.weight"].within(start, stop))

    rows = [row for piece, which in found for row in piece.ours_rows[which.start : which.stop]]
    assert sorted(rows) == list(range(start, stop))


def test_pieces_with_steps_are_found_between_one_another():
    pieces = (Piece("x", range(0, 8, 2), "a", range(4)), Piece("x", range(1, 8, 2), "b", range(4)))
    found = {piece.theirs: which for piece, which in Rows("ours", pieces).within(3, 6)}
    assert found == {"a": range(2, 3), "b": range(1, 3)}
