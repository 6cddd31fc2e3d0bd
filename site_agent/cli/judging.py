"""`site-agent predict` and `site-agent evaluate`: what a trained model says of cases, with labels and without."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.cli import options
from site_agent.cli.options import AsJson, Crop, Device, Frames, Like, Size, Spacing, State, Weights
from site_agent.cli.progress import with_bar

if TYPE_CHECKING:
    from site_agent.case_table import Judged
    from site_agent.data.cases import Case
    from site_agent.data.cohort import Cohort
    from site_agent.predict import Model, Prediction

PART = "dual (global and this site's own), global, or base (a classifier file, no adapter)"
SPLITS = ("test", "train", "all")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("predict")(predict)
    app.command("evaluate")(evaluate)


def predict(
    weights: Weights,
    size: Size = "",
    state: State = None,
    part: Annotated[str, typer.Option(help=f"{PART}. Default: dual with --state, else base.")] = "",
    volumes: Annotated[
        tuple[Path, Path] | None, typer.Option("--input", help="One case: its ED and its ES volume.")
    ] = None,
    cine: Annotated[
        Path | None, typer.Option(help="One case: a cine (4D NIfTI, or a folder with DICOM files).")
    ] = None,
    ed: Annotated[int | None, typer.Option(help="Frame of --cine, from 0.")] = None,
    es: Annotated[int | None, typer.Option(help="Frame of --cine, from 0.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Many cases: CSV with the columns case, ed, es; or case, image, ed, es for cines."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --table: CSV to write; default is to print it.")] = None,
    like: Like = None,
    spacing: Spacing = None,
    crop: Crop = None,
    frames: Frames = "stacked",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Say how probable disease is, from which probability on it is called, and where that threshold comes from.

    Images may be prepared ones, or raw: those are prepared here, by the code of `site-agent prepare`. The images and what is said
    of them stay on this machine. Of a table whose rows cannot all be used the others are judged, and the exit code is 1.

    Example: site-agent predict --input ed.nii.gz es.nii.gz --weights weights/ --state state/
    """
    from shared.errors import InputError

    if sum(one is not None for one in (volumes, cine, table)) != 1:
        raise typer.BadParameter("give one of --input ED ES, --cine CINE --ed N --es N, or --table CASES.csv")
    if cine is not None and (ed is None or es is None):
        raise typer.BadParameter("--cine needs --ed and --es: which of its frames, counted from 0")
    if out is not None and table is None:
        raise typer.BadParameter("--out is for --table; a single case is printed, with --json as JSON")
    from site_agent import case_table

    rows = [] if table is None else case_table.read(table)
    model = _load(weights, size, state, part, frames, device, like, spacing, crop)
    if table is not None:
        folder = table.parent
        judged = with_bar("judging cases", lambda told: case_table.judge(model, rows, folder, told))
        _tell_table(model, judged, out, as_json)
        raise typer.Exit(1 if any(one.error for one in judged) else 0)
    from site_agent.data.layouts import FrameFile, cine_frames

    if volumes is not None:
        pair = (FrameFile(volumes[0]), FrameFile(volumes[1]))
    else:
        if cine is None or ed is None or es is None:
            raise InputError("--cine needs --ed and --es")
        pair = cine_frames(cine, ed, es)
    found, images = model.read_and_judge(*pair)
    print(json.dumps(_facts(model, found, images)) if as_json else _text(model, found, images))


def evaluate(
    cohort: Annotated[Path, typer.Option(help="Prepared cohort of one vendor, with labels.")],
    weights: Weights,
    size: Size = "",
    state: State = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"{PART}; repeat. Default: dual and global with --state, else base.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which cases: test, train or all.")] = "test",
    out: Annotated[Path | None, typer.Option(help="CSV to write: every case's probability. Private.")] = None,
    frames: Frames = "stacked",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Judge the site's model on prepared cases: AUC, balanced accuracy, sensitivity and specificity with 95 % intervals.

    The same figures as in the agent's report, at probability 0.5 and at the site's own threshold. They stay on this machine.

    Example: site-agent evaluate --cohort cohort/siemens --weights weights/ --state state/
    """
    from site_agent import case_table
    from site_agent import evaluation as evaluations
    from site_agent.data.cohort import Cohort

    options.one_of(split, SPLITS, "--split")
    loaded = Cohort.load(cohort, for_training=False)
    cases = _chosen(loaded, split)
    parts = part or (["dual", "global"] if state else ["base"])
    done = []
    for one in dict.fromkeys(parts):
        model = _load(weights, size, state, one, frames, device, None, None, None)
        _check_preparation(model, loaded)
        done.append(with_bar("judging cases", partial(evaluations.evaluate, model, cases)))
    if out is not None:
        case_table.write(out, case_table.evaluation_csv(done))
    found = [one.figures() for one in done]
    if as_json:
        print(json.dumps({"cohort": str(cohort), "split": split, "parts": found}))
        return
    _tell_figures(found, [one.model for one in done], split, out)


def _load(
    weights: Path,
    size: str,
    state: Path | None,
    part: str,
    frames: str,
    device: str,
    like: Path | None,
    spacing: tuple[float, float, float] | None,
    crop: tuple[int, int] | None,
) -> "Model":
    from site_agent import predict as prediction

    chosen: Any = part or ("base" if state is None else "dual")
    options.one_of(chosen, ("dual", "global", "base"), "--part")
    options.one_of(device, ("auto", "cpu", "cuda"), "--device")
    wanted = options.geometry(like, spacing, crop)
    how: Any = {"frames": frames, "device": device, "geometry": wanted}
    return prediction.load(weights, size, state, chosen, **how)


def _chosen(cohort: "Cohort", split: str) -> "Sequence[Case]":
    from shared.errors import InputError

    cases = cohort.cases if split == "all" else cohort.test() if split == "test" else cohort.train()
    if not cases:
        raise InputError(f"{cohort.folder} has no {split} cases, of {len(cohort.cases)} in all; use --split all")
    return cases


def _check_preparation(model: "Model", cohort: "Cohort") -> None:
    """A cohort of another spacing than the model's training cases would be judged wrongly, without an error."""
    from shared.errors import InputError

    if model.geometry is not None and model.geometry.spacing_mm != cohort.preparation.spacing_mm:
        spacing = " ".join(f"{mm:g}" for mm in model.geometry.spacing_mm)
        raise InputError(
            f"{cohort.folder} was prepared to {cohort.preparation.spacing_mm} mm, this model's training cases to "
            f"{model.geometry.spacing_mm} mm; prepare it anew with --spacing {spacing}"
        )


# --- what is said ---------------------------------------------------------------------------------------------------


def _facts(model: "Model", found: "Prediction", images: str) -> dict[str, Any]:
    return {
        **model.facts(),
        "logits": [float(v) for v in found.logits],
        "probability": dict(zip(found.class_names, map(float, found.probabilities), strict=True)),
        "call": found.called(model.threshold),
        "images": images,
    }


def _text(model: "Model", found: "Prediction", images: str) -> str:
    lines = [
        f"{name:<12} probability {probability:.4f}   logit {logit:+.5f}"
        for name, logit, probability in zip(found.class_names, found.logits, found.probabilities, strict=True)
    ]
    lines.append(f"{'called':<12} {found.called(model.threshold)}{_other_call(model, found)}")
    return "\n".join([*lines, *_about(model), f"{'images':<12} {images}"])


def _other_call(model: "Model", found: "Prediction") -> str:
    half, own = found.called(None), found.called(model.threshold)
    return "" if half == own else f" (at probability 0.5 it would be {half})"


def _about(model: "Model") -> list[str]:
    """What a reader must know of a model's figures, a line each."""
    from site_agent.predict import WORDS

    version = f", version {model.version.version}" if model.version else ""
    lines = [f"{'model':<12} {model.part}: {WORDS[model.part]}{version}{'; PRIVATE' if model.private else ''}"]
    if model.threshold:
        lines.append(f"{'threshold':<12} {model.threshold.probability:.4f}, {model.threshold.source}")
    return [*lines, f"{'calibrated':<12} no: a softmax, not fitted to how often such cases are diseased"]


def _tell_table(model: "Model", judged: "Sequence[Judged]", out: Path | None, as_json: bool) -> None:
    from site_agent import case_table

    failed = [one for one in judged if one.error]
    if as_json:
        rows = [{**one.cells, **case_table.found(model, one)} for one in judged]
        print(json.dumps({**model.facts(), "cases": rows}))
    elif out is None:
        print(case_table.predictions_csv(model, judged), end="")
    if out is not None:
        case_table.write(out, case_table.predictions_csv(model, judged))
    if not as_json:
        lines = [*_about(model), f"{'cases':<12} {len(judged) - len(failed)} judged, {len(failed)} could not be"]
        lines += [f"{'':<12} {one.cells['case']}: {one.error}" for one in failed[:5]]
        if out is not None:
            lines.append(f"{'wrote':<12} {out}: PRIVATE, a row for each patient")
        typer.echo("\n".join(lines), err=out is None)


def _tell_figures(found: list[dict[str, Any]], models: "list[Model]", split: str, out: Path | None) -> None:
    first = found[0]
    print(
        f"{first['n']} cases ({split}): {first['normal']} normal, {first['diseased']} diseased. 95 % intervals in brackets"
    )
    if split != "test":
        print("training cases among them: where they are this site's own, the model has seen them, and this is no test")
    for figures, model in zip(found, models, strict=True):
        print()
        print("\n".join(_about(model)))
        print(f"{'AUC':<12} {_interval(figures['auc'], figures['auc_interval'])}")
        for key, cut in (("at_half", 0.5), ("at_validation", figures.get("at_validation", {}).get("threshold"))):
            if key in figures:
                print(f"{f'at {cut:.3f}':<12} {_confusion(figures, figures[key])}")
    if out is not None:
        print(f"\n{'wrote':<12} {out}: PRIVATE, a row for each patient")


def _confusion(figures: dict[str, Any], at: dict[str, Any]) -> str:
    found = {name: _interval(at[name], at["intervals"][name]) for name in at["intervals"]}
    return (
        f"balanced accuracy {found['balanced_accuracy']}\n"
        f"{'':<12} sensitivity {found['sensitivity']}, {at['diseased_called']} of {figures['diseased']}\n"
        f"{'':<12} specificity {found['specificity']}, {at['normal_not_called']} of {figures['normal']}"
    )


def _interval(value: float | None, limits: list[float] | None) -> str:
    if value is None or limits is None:
        return "not known: a class has no cases"
    return f"{value:.3f} [{limits[0]:.3f} to {limits[1]:.3f}]"
