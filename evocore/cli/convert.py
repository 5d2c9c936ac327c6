"""``evocore convert``: models from and to Hugging Face and InternEvo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evocore.errors import UserError

if TYPE_CHECKING:
    from evocore.conversion.model import Converted

app = typer.Typer(help="Convert models from and to other formats.", no_args_is_help=True)

Destination = Annotated[Path, typer.Argument(help="A folder that does not exist, or is empty.")]
Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, a folder of checkpoints, or a run's folder.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; by default that of training.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@app.command("hf-to-evocore")
def hf_to_evocore(
    src: Annotated[Path, typer.Argument(help="A folder with config.json and weights.")],
    dst: Destination,
    model_type: Annotated[str | None, typer.Option(help="The family, if not the one of config.json.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of a folder of Hugging Face."""
    from evocore.conversion.hugging_face import hugging_face_to_evocore
    from evocore.plugins.manager import load_plugins

    _tell(hugging_face_to_evocore(src, dst, load_plugins(), model_type=model_type), as_json)


@app.command("evocore-to-hf")
def evocore_to_hf(
    ckpt: Checkpoint,
    dst: Destination,
    dtype: Dtype = None,
    max_shard_size: Annotated[str, typer.Option(help="Of a file with weights, e.g. 500MB.")] = "5GB",
    like: Annotated[Path | None, typer.Option(help="Folder of Hugging Face with the tokenizer to copy.")] = None,
    as_json: Json = False,
) -> None:
    """Make a folder of Hugging Face of a checkpoint."""
    shard_bytes = _bytes(max_shard_size)
    from evocore.conversion.hugging_face import evocore_to_hugging_face
    from evocore.plugins.manager import load_plugins

    made = evocore_to_hugging_face(ckpt, dst, load_plugins(), dtype=dtype, shard_bytes=shard_bytes, like=like)
    _tell(made, as_json)


@app.command("internevo-to-evocore")
def internevo_to_evocore(
    src: Annotated[Path, typer.Argument(help="The folder of one step.")],
    dst: Destination,
    config: Annotated[Path | None, typer.Option(help="The config that it was trained with.")] = None,
    model_type: Annotated[str | None, typer.Option(help="The family, if there is no such file.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of one of InternEvo, weights alone."""
    from evocore.conversion.internevo import internevo_to_evocore as convert
    from evocore.plugins.manager import load_plugins

    _tell(convert(src, dst, load_plugins(), config_file=config, model_type=model_type), as_json)


@app.command("evocore-to-internevo")
def evocore_to_internevo(
    ckpt: Checkpoint,
    dst: Destination,
    tensor: Annotated[int, typer.Option(min=1, help="Tensor ranks (mtp, msp, fsp).")] = 1,
    weight: Annotated[int, typer.Option(min=0, help="Weight ranks (isp); 0 for another mode.")] = 0,
    pipeline: Annotated[int, typer.Option(min=1, help="Pipeline stages.")] = 1,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of InternEvo, weights alone, divided as it is going to load it."""
    if weight and tensor > 1:
        raise UserError(
            f"--tensor {tensor} --weight {weight}",
            "weight ranks alone for isp, where tensor ranks do not divide weights; tensor ranks alone otherwise",
            "leave one of them out",
        )
    from evocore.checkpoint.internevo.export import Division
    from evocore.conversion.internevo import evocore_to_internevo as convert
    from evocore.plugins.manager import load_plugins

    _tell(convert(ckpt, dst, load_plugins(), division=Division(tensor, weight, pipeline), dtype=dtype), as_json)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B|)", text.strip().upper())
    if match is None or not float(match[1]) or match[2] not in _UNITS:
        raise UserError(f"--max-shard-size {text}", "a size, e.g. 500MB or 5GB", "pass another")
    return int(float(match[1]) * _UNITS[match[2]])


def _tell(made: Converted, as_json: bool) -> None:
    from evocore.cli.output import print_json

    if as_json:
        print_json(vars(made))
        return
    print(
        f"{made.path}: {made.family}, {made.parameters:,} parameters in {made.files} file(s), "
        f"{made.bytes_read / 1e6:,.1f} MB read"
    )
