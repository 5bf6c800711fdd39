"""The one door to seaborn: the table of modules as a heatmap, for notebooks and papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsense.formats import format_of
from vitsense.schemas import RATED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEAST_NATS = 1e-6
"""Smaller divergences are drawn in this one's colour: a logarithmic scale has no zero."""

_INCHES_A_ROW = 0.24


def heatmap(sensitivity: pd.DataFrame, model: str) -> Figure:
    """Divergence of every module in every format, nats, on a logarithmic scale of colour.

    Args:
        sensitivity: ``sensitivity.csv`` of one model; where both parts of a module were quantized
            together, only those rows are drawn.
        model: For the title.

    Returns:
        A figure of its own, with one row for each module from the first to the last. Nothing of
        matplotlib's state is changed; ``figure.savefig("heatmap.pdf")`` writes it.
    """
    import seaborn as sns
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rated = sensitivity[sensitivity["status"].isin(RATED)]
    if "both" in set(rated["part"]):
        rated = rated[rated["part"] == "both"]
    table = rated.pivot_table(index="module", columns="format", values="kl", sort=False)
    table = table.reindex(list(dict.fromkeys(sensitivity["module"])))
    forms = sorted(table.columns, key=lambda name: -format_of(name).effective_bits)
    table = table[forms].rename(columns=lambda name: format_of(name).words)
    figure = Figure(figsize=(2.5 + 0.9 * len(forms), 1.2 + _INCHES_A_ROW * len(table)))
    axes = figure.subplots()
    sns.heatmap(
        table.clip(lower=LEAST_NATS),
        ax=axes,
        norm=LogNorm(),
        cmap="cividis",
        annot=table,
        fmt=".1e",
        annot_kws={"size": 7},
        cbar_kws={"label": "divergence (nats)"},
    )
    axes.set_title(f"{model}: every module quantized alone")
    axes.set_xlabel("")
    axes.set_ylabel("")
    axes.tick_params(labelsize=7)
    figure.tight_layout()
    return figure
