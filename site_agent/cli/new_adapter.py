"""`site-agent init-adapter`: version 0 of a federation's adapter."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from site_agent.cli.options import AsJson, Size, Weights


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init-adapter")(init_adapter)


def init_adapter(
    weights: Weights,
    out: Annotated[Path, typer.Option(help="File to write.")],
    size: Size = "",
    frames: Annotated[str, typer.Option(help="stacked or siamese.")] = "stacked",
    rank: Annotated[int, typer.Option(help="Rank of the global part.")] = 8,
    alpha: Annotated[float, typer.Option(help="Its scale is alpha / rank.")] = 16.0,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers of a block, repeat: q, kv, proj, fc1, fc2 (MONAI: qkv, proj, fc1, fc2); default the attention's."
        ),
    ] = None,
    block: Annotated[list[int] | None, typer.Option(help="Blocks to adapt, repeat; default the last two.")] = None,
    head_policy: Annotated[
        str, typer.Option(help="What of the head is shared: global, local, global+local-bias or global+local.")
    ] = "global+local-bias",
    residual_rank: Annotated[int, typer.Option(help="Rank of the residual that recipe fedex-lora keeps.")] = 0,
    dense: Annotated[
        list[str] | None,
        typer.Option(help="Train weights of the base model itself: beginnings of their names, repeat, or `all`."),
    ] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Class names in order, repeat.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of A and the head.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write version 0 of a global adapter, the file that `aggregator init` takes.

    Example: site-agent init-adapter --weights cinema.safetensors --size base --out v0.safetensors
    """
    from shared.errors import InputError
    from site_agent import new_adapter

    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name the file to write, for example {out / 'v0.safetensors'}")
    choices: dict[str, Any] = {"frames": frames, "head_policy": head_policy, "rank": rank, "alpha": alpha, "seed": seed}
    choices |= {"residual_rank": residual_rank, "dense": ("",) if dense == ["all"] else tuple(dense or ())}
    if target:
        choices["targets"] = tuple(target)
    if block:
        choices["blocks"] = tuple(block)
    if class_name:
        choices["class_names"] = tuple(class_name)
    adapter = new_adapter.init_adapter(weights, size, new_adapter.AdapterChoices(**choices))
    adapter.write(out)
    layout, metadata = adapter.manifest.layout, adapter.manifest.metadata
    facts = {
        "file": str(out),
        "digest": adapter.digest,
        "tensors": len(layout.tensors),
        "parameters": layout.parameters,
        "bytes": layout.size,
        "blocks": list(metadata.blocks),
        "base_model_sha256": metadata.base_model_sha256,
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"wrote {out}: {layout.parameters:,} numbers, {layout.size / 1000:.1f} kB, blocks {list(metadata.blocks)}")
    print(f"digest {adapter.digest[:16]}, base model {metadata.base_model_sha256[:16]}")
    print(f"next: aggregator init --adapter {out} --federation NAME --site SITE ...")
