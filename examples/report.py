"""How the examples show their results: a table on the terminal, loss curves in a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = Path(__file__).parent / "output"
#: Thirteen colours that can be told apart; full-batch optimizers are dashed besides.
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"),
    *("#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#000000", "#3b3f99", "#9acd32"),
)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a header: the first column to the left, numbers to the right."""
    cells = [list(header), *([format_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def format_cell(cell: Any) -> str:
    """Return text as it is, integers with separators of thousands, floats with few digits."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | np.integer):
        return f"{cell:,}"
    return f"{cell:.4f}"


def plot_loss_curves(models: Mapping[str, Any], title: str, file_name: str) -> Path:
    """Save the loss curves of fitted models, by epoch and by seconds, and return the file.

    Parameters
    ----------
    models : mapping of str to estimator
        Label -> fitted estimator.
    title : str
    file_name : str
        Name of the PNG in `examples/output/`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, (by_epoch, by_time) = plt.subplots(
        1, 2, figsize=(11.5, 5), sharey=True, layout="constrained"
    )
    ranked = sorted(models.items(), key=lambda item: item[1].loss_curve_[-1], reverse=True)
    colours = dict(zip(models, COLOURS, strict=False))
    for label, model in ranked:
        losses = model.loss_curve_
        style = {
            "color": colours[label],
            "linestyle": "--" if model.optimizer_.is_full_batch else "-",
            "linewidth": 1.7,
            "label": f"{label}  {losses[-1]:.3f}",
        }
        epochs, seconds = np.arange(1, len(losses) + 1), np.cumsum(model.history_["seconds"])
        for axes, x in ((by_epoch, epochs), (by_time, seconds)):
            axes.plot(x, losses, **style)
            axes.plot(x[-1], losses[-1], marker="o", markersize=4, color=style["color"])
    by_epoch.set(xscale="log", xlabel="passes over the data", ylabel="training objective")
    by_time.set(xscale="log", xlabel="seconds of training")
    for axes in (by_epoch, by_time):
        axes.set_yscale("log")
        axes.grid(color="0.88")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    figure.legend(
        *by_epoch.get_legend_handles_labels(),
        loc="outside right center",
        title="optimizer and last value\n(dashed: full batch)",
        frameon=False,
    )
    figure.suptitle(title)
    OUTPUT.mkdir(exist_ok=True)
    file = OUTPUT / file_name
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
