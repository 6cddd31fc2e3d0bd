"""Commands around an adapter: make version 0, judge a case, read the site's report, export for PEFT."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Weights = Annotated[Path, typer.Option(help="Backbone folder or CineMA's safetensors file.")]
Size = Annotated[str, typer.Option("--size", help="tiny or base, for a CineMA file without config.json beside it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Folder = Annotated[Path, typer.Option(help="The agent's state folder.")]
RATES = ("balanced_accuracy", "sensitivity", "specificity")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("init-adapter")(init_adapter)
    app.command("predict")(predict)
    app.command("report")(report)
    app.command("export")(export)


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


def predict(
    volumes: Annotated[tuple[Path, Path], typer.Option("--input", help="ED and ES volume (NIfTI, prepared).")],
    weights: Weights,
    size: Size = "",
    state: Annotated[Path | None, typer.Option(help="State folder of an agent: use its dual model.")] = None,
    frames: Annotated[str, typer.Option(help="stacked or siamese (base model only).")] = "stacked",
    as_json: AsJson = False,
) -> None:
    """Judge one patient: logits and probability.

    Example: site-agent predict --input ed.nii.gz es.nii.gz --weights weights/ --state state/
    """
    from site_agent import predict as prediction

    model = (
        prediction.base_model(weights, size, frames)  # type: ignore[arg-type]
        if state is None
        else prediction.site_model(weights, size, state)
    )
    found = model.predict(*volumes)
    if as_json:
        print(json.dumps(found.to_jsonable()))
        return
    for name, logit, probability in zip(found.class_names, found.logits, found.probabilities, strict=True):
        print(f"{name:<12} probability {probability:.4f}   logit {logit:+.5f}")


def report(state: Folder, as_json: AsJson = False) -> None:
    """Show what federation brought this hospital: probe, alone, global and dual on its own cases. Stays at the site.

    Example: site-agent report --state state/
    """
    from shared.errors import InputError
    from site_agent.report import REPORT

    path = state / REPORT
    if not path.exists():
        raise InputError(f"{path} is not there yet: the agent writes it when the federation is finished")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); start the agent again to have it written anew") from error
    if as_json:
        print(json.dumps(facts))
        return
    print(
        f"{facts['site']} in {facts['federation']}: {facts['training_patients']} patients trained, "
        f"{facts['validation_patients']} for validation, {facts['test_patients']} held out"
    )
    print(f"{'arm':<8}{'cases':>6}{'AUC':>8}{'bal.acc 0.5':>13}{'own threshold':>15}{'sens.':>8}{'spec.':>8}")
    for arm in ("probe", "alone", "global", "dual"):
        of = facts["arms"][arm].get("test") or facts["arms"][arm].get("validation")
        if of is None:
            print(f"{arm:<8}{'no validation cases: nothing to judge it by':>44}")
            continue
        own = of["at_validation"]
        row = (of["auc"], of["at_half"]["balanced_accuracy"], *(own[k] for k in RATES))
        cells = [f"{'-' if v is None else format(v, '.3f'):>{w}}" for v, w in zip(row, (8, 13, 15, 8, 8), strict=True)]
        print(f"{arm:<8}{of['n']:>6}{''.join(cells)}")


def export(
    state: Folder,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    size: Size = "",
) -> None:
    """Write this site's dual model (global + local) as a PEFT folder. It holds private tensors: keep it in the hospital.

    Example: site-agent export --state state/ --weights weights/ --out peft/
    """
    from shared import peft
    from site_agent import predict as prediction
    from site_agent.models import adapter_tensors
    from site_agent.state import read_contract

    classifier = prediction.site_model(weights, size, state).classifier
    metadata = read_contract(state).manifest.metadata
    tensors = adapter_tensors.combined_tensors(classifier)
    rank = next((v.shape[0] for name, v in tensors.items() if name.endswith(".lora_A.weight")), 0)
    peft.write_folder(out, tensors, metadata, rank, float(rank))
    print(f"wrote {out}: rank {rank}, global + local. Private: do not send it anywhere")
