"""Rules between the parameters of a mixture of experts and the names that Hugging Face's models have for them.

Files hold three tensors for each expert, whatever a class of ``transformers`` makes of them in memory. Ours are
``layers.N.feed_forward``'s ``gate``, ``experts.{w13, w2}``, ``shared`` (an MLP) and ``shared_gate``.
"""

from __future__ import annotations

from evocore.models.decoder.spec import DecoderSpec
from evocore.models.decoder.weights import LLAMA, OURS, feed_forward
from evocore.nn.weight_map import Rule
from evocore.nn.weight_rules import experts, same

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def mixture(
    spec: DecoderSpec,
    theirs: str = f"{LLAMA}.mlp",
    *,
    projections: tuple[str, str, str] = PROJECTIONS,
    shared: str = "shared_expert",
) -> list[Rule]:
    """The rules of all layers with experts.

    Args:
        theirs: the prefix of their names.
        projections: of an expert: gate, up and down.
        shared: what they call the shared experts.
    """
    assert spec.mixture is not None
    count, one = spec.mixture.rule.experts, f"{theirs}.experts.{{expert}}"
    gate, up, down = (f"{one}.{name}.weight" for name in projections)
    ours = f"{OURS}.feed_forward"
    return [
        same(f"{ours}.gate.weight", f"{theirs}.gate.weight"),
        same(f"{ours}.gate.bias", f"{theirs}.gate.e_score_correction_bias"),
        experts(f"{ours}.experts.w13.weight", count, gate, up),
        experts(f"{ours}.experts.w2.weight", count, down),
        *feed_forward("feed_forward.shared", f"{theirs}.{shared}", *PROJECTIONS),
        same(f"{ours}.shared_gate.weight", f"{theirs}.shared_expert_gate.weight"),
    ]
