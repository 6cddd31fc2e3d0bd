"""One picture of what the phantom draws: a case per vendor and class, ED beside ES."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from site_agent.data.phantom.case import sample_case
from site_agent.data.phantom.profile import DIAGNOSES, PhantomConfig, generator

FIRST_INDEX = 1_000_000
"""Beyond every cohort's case numbers: the figure shows hearts of its own."""


def write_figure(config: PhantomConfig, path: Path) -> None:
    """Save the middle slices of one case per vendor (rows) and class (columns, ED and ES) as PNG or what the suffix says."""
    columns = 2 * len(DIAGNOSES)
    figure = Figure(figsize=(1.25 * columns, 1.33 * len(config.vendors) + 0.5), layout="constrained")
    panels = figure.subplots(len(config.vendors), columns, squeeze=False)
    for row, vendor in enumerate(config.vendors):
        for column, diagnosis in enumerate(DIAGNOSES):
            case = sample_case(config, vendor, diagnosis, generator(config.seed, "test", vendor, FIRST_INDEX + column))
            white = float(np.percentile(case.frames, 99.5))
            for panel, frame, name in zip(panels[row, 2 * column :], (case.ed, case.es), ("ED", "ES"), strict=False):
                panel.imshow(case.frames[:, :, config.shape[2] // 2 - 1, frame].T, cmap="gray", vmin=0.0, vmax=white)
                panel.set(xticks=[], yticks=[])
                if row == 0:
                    panel.set_title(f"{diagnosis} {name}", fontsize=9)
        panels[row, 0].set_ylabel(vendor, fontsize=9)
    figure.suptitle("Synthetic phantoms: middle slice of one case per vendor and class", fontsize=10)
    with mpl.rc_context({"svg.hashsalt": "phantom"}):
        figure.savefig(path, dpi=110)
