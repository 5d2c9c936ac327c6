"""Rules for what predicts further tokens: in files, blocks that count on from the last one (DeepSeek-V3).

Files repeat embedding and head with each of them; these are the model's own, and are not read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evocore.models.decoder.spec import DecoderSpec
from evocore.models.decoder.weights import LLAMA, OURS
from evocore.nn.weight_map import Part, Rule, WeightMap
from evocore.nn.weight_rules import same

NAMES = {
    "embedding_norm": "enorm",
    "hidden_norm": "hnorm",
    "join.projection": "eh_proj",
    "norm": "shared_head.norm",
}


def with_predictors(spec: DecoderSpec, names: WeightMap) -> WeightMap:
    """A map, with the predictors' blocks named like the others.

    Predictors of a file that the model does not have are left unread.
    """
    rules, repeated = [*names.rules], []
    for ahead in range(spec.predictors):
        ours, theirs = f"predictors.{ahead}", f"model.layers.{spec.layers + ahead}"
        rules += [_moved(rule, f"{ours}.block", theirs) for rule in names.rules if rule.ours.startswith(f"{OURS}.")]
        rules += [same(f"{ours}.{mine}.weight", f"{theirs}.{its}.weight") for mine, its in NAMES.items()]
        repeated += [f"{theirs}.embed_tokens.weight", f"{theirs}.shared_head.head.weight"]
    repeated.append(f"model.layers.{spec.layers + spec.predictors}.*")
    return replace(names, rules=tuple(rules), ignored=(*names.ignored, *repeated))


def _moved(rule: Rule, ours: str, theirs: str) -> Rule:
    """A rule about all layers, about one thing that is like a layer."""

    def parts(rows: int) -> Iterator[Part]:
        for part in rule.parts(rows):
            yield replace(part, theirs=part.theirs.replace(LLAMA, theirs))

    return Rule(rule.ours.replace(OURS, ours), parts)
