"""``evocore topology``: which ranks work together in a config, on any number of them, and what each has and sends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evocore.cli.topology_schedule import show_schedule

if TYPE_CHECKING:
    from evocore.config import Config
    from evocore.parallel.layout import Layout
    from evocore.parallel.sizes import Sizes

SHOWN = 4
"""Parts of a list of ranks that are written out; of longer lists the first two and the last are."""


def topology(
    config: Annotated[Path | None, typer.Option(help="The config that is asked about.")] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="Number of ranks.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Whose groups, traffic and memory are shown.")] = 0,
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the config; may be repeated.")] = [],  # noqa: B006
    with_traffic: Annotated[
        bool,
        typer.Option("--traffic", help="What the rank exchanges in one step, in bytes of whole tensors."),
    ] = False,
    with_memory: Annotated[
        bool, typer.Option("--memory", help="What the rank holds of the model and the optimizer.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="The device of --traffic and --memory; as for training if left out.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Show a pipeline schedule instead: 1F1B, interleaved, ZBH1 or ZBV.")
    ] = None,
    stages: Annotated[int, typer.Option(min=1, help="Stages of --schedule.")] = 4,
    micro: Annotated[int, typer.Option(min=1, help="Micro-batches of --schedule.")] = 8,
    chunks: Annotated[int | None, typer.Option(min=1, help="Chunks of each stage of --schedule.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw --schedule into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a config divides ranks into groups, and of one rank the groups, the traffic or the memory.

    Traffic and memory are computed without a device, for any number of ranks. Traffic is that of training steps, not
    of validation and checkpoints; each dataset type adds 12 bytes to the sums of the metrics. Messages of a pipeline
    go from one rank of a group to another. Rows of experts are counted as if all experts got the same.
    """
    from evocore.cli.output import print_json
    from evocore.config import load_config
    from evocore.config.checks_parallel import ranks_text, size_problems
    from evocore.config.problems import combined
    from evocore.errors import UserError
    from evocore.parallel.topology import Sizes, Topology

    if schedule is not None:
        return show_schedule(schedule, stages, micro, chunks, svg, as_json=as_json)
    if config is None or world_size is None:
        raise UserError(
            f"evocore topology without {'--config' if config is None else '--world-size'}",
            "a config and a number of ranks, or a schedule",
            "name both, e.g. --config train.py --world-size 8, or --schedule 1F1B",
        )
    if rank >= world_size:
        raise UserError(
            f"--rank {rank} of --world-size {world_size}",
            f"a rank from 0 to {world_size - 1}",
            "name another rank or a larger number of ranks",
        )
    loaded = load_config(config, sets).config
    problems = size_problems(loaded, world_size)
    if problems:
        raise combined(problems, f"{config} does not divide {ranks_text(world_size)}")
    whole = Topology(Sizes.of(loaded, world_size))
    facts = {
        "config": str(config),
        "rank": rank,
        "sizes": _sizes(whole.sizes),
        "groups": [
            {
                "name": name,
                "groups": world_size // whole.size(name),
                "size": whole.size(name),
                "index": whole.index(name, rank),
                "ranks": whole.group_of(name, rank),
                "purpose": whole.purpose(name),
            }
            for name in whole.names()
        ],
    }
    if with_traffic or with_memory:
        facts |= _counted(loaded, world_size, rank, backend, with_traffic=with_traffic, with_memory=with_memory)
    print_json(facts) if as_json else _show(facts)


def _counted(
    config: Config, world_size: int, rank: int, backend: str | None, *, with_traffic: bool, with_memory: bool
) -> dict[str, Any]:
    """The traffic and the memory of a rank.

    Raises:
        UserError: if the config could not be trained like this.
    """
    from dataclasses import asdict

    from evocore.config import require_runnable
    from evocore.parallel.layout import Layout
    from evocore.plugins.manager import load_plugins
    from evocore.training.assembly import make_plan
    from evocore.training.on_paper import RankOnPaper

    registry = load_plugins()
    families = {name for family in registry.models() for name in (family.name, *family.aliases)}
    require_runnable(config, world_size=world_size, families=families)
    layout = Layout.of(config, world_size, rank)
    paper = RankOnPaper(config, make_plan(config, registry, layout=layout, backend=backend))
    found: dict[str, Any] = {"pipeline": _pipeline(layout)} if layout.chunks else {}
    if with_traffic:
        found["traffic"] = [asdict(exchange) for exchange in paper.traffic()]
    if with_memory:
        found["memory"] = [asdict(holding) for holding in paper.memory()]
    return found


def _pipeline(layout: Layout) -> dict[str, Any]:
    """What the rank's stage has: first and last layer of each of its chunks."""
    schedule, stage = layout.schedule, layout.part("pipeline").index
    held = [layout.chunks[chunk] for chunk in schedule.chunks_of(stage)]
    return {
        "schedule": schedule.name,
        "stage": stage,
        "layers": [[chunk.start, chunk.stop - 1] for chunk in held],
    }


def _sizes(sizes: Sizes) -> dict[str, Any]:
    """The sizes with those that follow from them."""
    from dataclasses import asdict

    derived = (
        "stage",
        "data",
        "weight_data",
        "zero_replica",
        "head",
        "windows",
        "expert_data",
        "expert_zero_replica",
    )
    return asdict(sizes) | {name: getattr(sizes, name) for name in derived}


def _show(facts: dict[str, Any]) -> None:
    of, isp = facts["sizes"], facts["sizes"]["mode"] == "isp"
    print(f"{facts['config']}: {of['world']} ranks, mode {of['mode']}")
    print(_product("work", of, ("pipeline", "data", "tensor")), end="")
    print(f" (head {of['head']} x context {of['context']})" if of["context"] > 1 else "")
    print(_product("weights", of, ("pipeline", "zero_replica", "zero", "weight" if isp else "tensor")))
    if of["expert"] > 1:
        shared = "expert_weight" if isp else "expert_tensor"
        print(_product("experts", of, ("pipeline", "expert_zero_replica", "expert_zero", "expert", shared)))
    if "pipeline" in facts:
        held = facts["pipeline"]
        layers = " and ".join(f"{first}-{last}" for first, last in held["layers"])
        print(f"stage    {held['stage']} of {of['pipeline']} ({held['schedule']}): layers {layers}")
    tables = [show for kind, show in (("traffic", _show_traffic), ("memory", _show_memory)) if kind in facts]
    for show in tables or [_show_groups]:
        print()
        show(facts)


def _show_groups(facts: dict[str, Any]) -> None:
    from evocore.cli.output import print_table

    print_table(
        ["group", "groups", "size", f"ranks with rank {facts['rank']}", "what they share"],
        [
            (row["name"], row["groups"], row["size"], compact_ranks(row["ranks"]), row["purpose"])
            for row in facts["groups"]
        ],
    )


def _show_traffic(facts: dict[str, Any]) -> None:
    from evocore.cli.output import print_table

    sizes = {group["name"]: group["size"] for group in facts["groups"]}
    columns = [f"in one step of rank {facts['rank']}", "op", "group", "ranks", "calls", "bytes", "bytes of one call"]
    rows = [
        (
            row["purpose"],
            row["op"],
            row["group"],
            sizes[row["group"]],
            row["calls"],
            f"{row['bytes']:,}",
            f"{row['bytes'] // row['calls']:,}" if row["bytes"] % row["calls"] == 0 else "various",
        )
        for row in facts["traffic"]
    ]
    print_table(columns, rows)
    if any(row["group"] == "expert" for row in facts["traffic"]):
        print("\nrows of experts: as if all experts got the same; routers decide how many it really are")


def _show_memory(facts: dict[str, Any]) -> None:
    from evocore.cli.output import print_table

    rows = [
        (
            row["what"],
            f"{row['bytes']:,}",
            f"{row['bytes'] / 2**30:.3f}",
            f"{row['padding']:,}",
            "at most" if row["bound"] else "",
        )
        for row in facts["memory"]
    ]
    held = sum(row["bytes"] for row in facts["memory"] if not row["bound"])
    rows.append(("all the time", f"{held:,}", f"{held / 2**30:.3f}", "", ""))
    print_table([f"memory of rank {facts['rank']}", "bytes", "GiB", "of these padding", ""], rows)


def _product(title: str, sizes: dict[str, Any], names: Sequence[str]) -> str:
    return f"{title:8} {sizes['world']} = " + " x ".join(f"{name} {sizes[name]}" for name in names)


def compact_ranks(ranks: Sequence[int]) -> str:
    """Ascending ranks with neighbours as one part and long lists cut: ``0-7``, ``0,8,..,1016``, ``0-1,8-9``."""
    parts: list[tuple[int, int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], rank)
        else:
            parts.append((rank, rank))
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ",".join(texts if len(texts) <= SHOWN else [*texts[:2], "..", texts[-1]])
