"""report.html: one file without scripts and without anything to load."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from experiments.comparison.report import finished, html, primary
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.plots import Plot
from experiments.comparison.report.primary import Primary
from experiments.comparison.report.resampling import DRAWS, SEED
from experiments.comparison.report.tables import Table
from shared.page import parts

STYLE = Path(__file__).with_name("report.css")
SYNTHETIC = "SYNTHETIC DATA"
EXPLORATORY = parts.stamp("Exploratory.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a report is made of. `tables`, `plots`: by name; of a plot also its SVG."""

    comparison: Comparison
    primary: Primary
    tables: Mapping[str, Table]
    plots: Mapping[str, tuple[Plot, str]]

    def table(self, name: str) -> str:
        """Return a table for the page; nothing if there is none, or no row in it."""
        found = self.tables.get(name)
        return html.table(found) if found and found.rows else ""

    def plot(self, name: str) -> str:
        """Return a plot for the page; nothing if there is none."""
        return html.figure(*self.plots[name]) if name in self.plots else ""


def page(of: Contents) -> str:
    """Return the whole page."""
    sections = (_head, _primary, _scenarios, _cost, _extensions, _exploratory, _rounds, _methods, _reading, _setting)
    title = "Comparison of federated methods" + (" (synthetic data)" if of.comparison.synthetic else "")
    return parts.document(title, [section(of) for section in sections], STYLE)


def _head(of: Contents) -> str:
    comparison = of.comparison
    if comparison.synthetic:
        label = (
            f'<p class="synthetic" role="note"><b>{SYNTHETIC}</b> <span>Every image was computed; no patient was scanned. '
            "Nothing here says how a method works on patients.</span></p>\n"
        )
        runs = "Each run is a fresh cohort with a test set of its own."
    else:
        label = (
            '<p class="dependent" role="note"><b>RUNS ARE DEPENDENT</b> <span>Real patients. Runs are folds of one cohort: p '
            "values over them describe and prove nothing.</span></p>\n"
        )
        runs = "A run is one fold of one shuffle of the same patients."
    places = "; ".join(f"{name} ({text})" for name, text in comparison.scenarios.items())
    told = parts.bullets(primary.words(of.primary))
    return (
        f"<header>\n{label}<h1>Comparison of federated fine-tuning methods</h1>\n"
        f"<p>{escape(_compared(comparison))} Same trainer, cases, seeds and evaluation for all. {runs}</p>\n"
        f'<div class="result"><h2>Primary result</h2>{told}</div>\n{_missing(comparison)}\n'
        f"{parts.tiles(list(_tiles(comparison)))}\n{parts.quiet(f'{_size(comparison)} Scenarios: {places}.')}\n"
        "</header>"
    )


def _size(comparison: Comparison) -> str:
    plan = comparison.setting
    rounds = f"{_several(plan['rounds'], 'round')} of {_several(plan['local_epochs'], 'epoch')}"
    return (
        f"{rounds}; scale {plan['scale']:g} of the phantom's training cases." if comparison.synthetic else f"{rounds}."
    )


def _compared(comparison: Comparison) -> str:
    held = [one[0].contender for one in comparison.by_method().values()]
    extended = sum(one.group == "extension" for one in held)
    more = f" and {_several(extended, 'variant')} with one switch each" if extended else ""
    places = len({place for place, _ in comparison.results})
    return f"{_several(len(held) - extended, 'method')}{more} in {_several(places, 'scenario')}."


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _tiles(comparison: Comparison) -> Iterator[tuple[str, str]]:
    held = comparison.results.values()
    core, others = ([one for one in held if (one.contender.group == "core") == wanted] for wanted in (True, False))
    left_out = {(one.contender.key.partition("@")[0], run) for one in comparison.unseen for run in one.cells}
    yield f"{sum(len(one.cells) for one in held) + len(left_out):,}", "finished cells: one method, one run"
    if core:
        yield _runs(core), "runs of a core method in a scenario"
    if others:
        yield _runs(others), "runs of another method"
    tested = {(one.scenario, run): len(cases) for one in held for run, cases in one.predictions.items()}
    yield f"{sum(tested.values()) / len(tested):,.0f}", "held-out cases a run"
    yield f"{sum(tested.values()):,}", "held-out cases of all runs"
    seconds = [cell.seconds for one in held for cell in one.cells.values()]
    yield f"{sum(seconds) / len(seconds):.0f} s", "a cell, on one thread"


def _runs(held: Sequence[Result]) -> str:
    """Return how many runs methods have, the fewest and the most."""
    counts = {len(one.cells) for one in held}
    return " to ".join(map(str, sorted({min(counts), max(counts)})))


def _missing(comparison: Comparison) -> str:
    lines = finished.missing(comparison)
    lines += [f"passed over: cells of '{key}', which is no method of this version" for key in comparison.unknown]
    told = [_box("Not finished", lines)] if lines else []
    if (sets := len(comparison.versions())) > 1:
        told.append(_box("Versions differ", [f"Cells were computed by {sets} sets of versions; Setting names them."]))
    if absent := finished.not_begun(comparison):
        told.append(parts.quiet(f"Not begun: {', '.join(finished.CALLED[group] for group in absent)}."))
    return "\n".join(told)


def _box(title: str, lines: Sequence[str]) -> str:
    return f'<div class="missing"><h2>{title}</h2>{parts.bullets(lines)}</div>'


def _primary(of: Contents) -> str:
    intro = (
        "<p>Fixed before the first comparison. One test a row: Wilcoxon's signed ranks over runs, two-sided. Of the intervals "
        "beside it one is over runs too; the other is of resampled patients and of these very models, and knows nothing of "
        "training again.</p>"
    )
    return html.section("Primary family", intro, of.table("primary"), of.table("no-loss"))


def _scenarios(of: Contents) -> str:
    shown = []
    for scenario in of.comparison.scenarios:
        more = [
            of.table(f"sites-{scenario}"),
            of.table(f"main-{scenario}-half"),
            of.table(f"main-{scenario}-ranking"),
            of.plot(f"reliability-{scenario}"),
        ]
        shown += [
            of.table(f"main-{scenario}-validation"),
            of.plot(f"sites-{scenario}"),
            html.folded(f"{scenario}: site by site, threshold 0.5, ranking, calibration", more),
        ]
    return html.section("All methods, scenario by scenario", *shown)


def _cost(of: Contents) -> str:
    return html.section("What it costs", of.plot("bytes"), of.table("cost"))


def _extensions(of: Contents) -> str:
    intro = EXPLORATORY if of.table("extensions") else ""
    return html.section(
        "What goes beyond the paper",
        intro,
        of.table("extensions"),
        of.table("asked-afterwards"),
        of.table("switches"),
        of.table("unseen"),
    )


def _exploratory(of: Contents) -> str:
    shown = [html.folded(name, [of.table(f"exploratory-{name}")]) for name in of.comparison.scenarios]
    if not any(shown):
        return ""
    intro = (
        f"{EXPLORATORY}<p>Every method against rank-matched FedIT and against plain Med-DualLoRA, on the runs "
        "that both have. Nothing here was fixed in advance, and a small p among so many is expected.</p>"
    )
    return html.section("Exploratory comparisons", intro, *shown)


def _rounds(of: Contents) -> str:
    home = of.comparison.home
    others = [of.plot(f"local-part-{name}") for name in of.comparison.scenarios if name != home]
    where = f" in the scenario {home}" if any(others) else ""
    local = of.plot(f"local-part-{home}") or f"<p>No method with a local part is finished{where} yet.</p>"
    return html.section(
        "Round by round",
        local,
        html.folded("the other scenarios", others),
        of.plot(f"aggregation-error-{home}"),
    )


def _methods(of: Contents) -> str:
    return html.section(
        "What was compared", of.table("methods"), html.folded("settings that were tried", [of.table("tuning")])
    )


def _reading(of: Contents) -> str:
    synthetic = of.comparison.synthetic
    source = (
        "Synthetic phantoms with invented vendor styles: differences between methods here may not be there on patients. All runs "
        "share one backbone and the settings chosen once. Wilcoxon's p values and intervals over runs are about new cohorts, "
        "trained on again; DeLong's, McNemar's and the bootstrap's are about new patients of these very models."
        if synthetic
        else "Folds of one cohort share patients in training, and every shuffle tests all patients again. Intervals and p values "
        "take runs as independent, and are too narrow and too small."
    )
    points = [
        source,
        "Figures are computed within each run, and averaged over runs; runs are not pooled, since each has a model of its own.",
        f"Bootstrap: within each run, site and label as many patients are drawn as there are, B = {DRAWS:,}, the same for all "
        "methods. Intervals are percentiles. The worst of several sites is lower in resamples than in the cohort.",
        "DeLong: the difference and its variance V at each of S sites in each of R runs, that site's cases alone ranked; combined "
        "as the mean over sites and runs with variance sum V / (S R)².",
        "McNemar: exact, per class, at the validation thresholds, all runs' cases together.",
        "Wilcoxon with n runs cannot give a p below 2 / 2^n, which is printed beside it.",
        f"Holm: over the {len(of.primary.tests)} primary tests, and apart from them over all exploratory p values together.",
        "Validation thresholds come from each site's own validation cases, never from held-out ones. Specificity at a given "
        "sensitivity is read off the held-out cases themselves, and flatters all methods alike.",
        "Centralised training is the pooled reference: it sends all images to one place, and is neither a federated method nor an "
        "upper bound.",
        "The predictions of every held-out case are in predictions/, one CSV for each scenario and method: all figures can be "
        "computed again from them.",
    ]
    return html.section("How to read this", parts.bullets(points))


def _setting(of: Contents) -> str:
    config = of.comparison.config
    cells = [cell for one in of.comparison.results.values() for cell in one.cells.values()]
    facts = {
        "setting": ", ".join(
            f"{name} {value}" for name, value in of.comparison.setting.items() if value not in (None, "")
        ),
        "contenders": f"SHA-256 {config['contenders_sha256']}",
        "computed by": ", ".join(sorted({cell.code or "a release that did not note it" for cell in cells})),
        "versions": "; ".join(of.comparison.versions()),
        "seeds": "; ".join(
            [*(f"{name} {seed}" for name, seed in config["seeds"].items()), f"plus run; bootstrap {SEED}"]
        ),
        "files": "predictions/*.csv, tables/*.md, *.tex and *.csv, plots/*.svg and *.png, summary.json",
    }
    return html.section("Setting", parts.facts(list(facts.items())))
