"""The pictures of the playground, as HTML: layers, kept pixels, force transfer, learning."""

from __future__ import annotations

import base64
import io
import math
from html import escape

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from .names import percent

PALE, DARK, DEAD = "#a9bdd4", "#1f4e79", "#c0504d"
CURVES = ["#1f4e79", "#d98c00", "#2a8a57", "#8b5fbf", "#c0504d"]
LEAST = 4  # the scale of densities begins at 10^-4
METRICS = {"synflow": "SynFlow", "snip": "SNIP", "grasp": "GraSP"}


def embedded(png, words, style=""):
    words, data = escape(words), base64.b64encode(png.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    return f'<img alt="{words}" title="{words}" style="{style}" src="{source}">'


def layers(table, live):
    """A table of densities and dead units.

    Plain HTML: drawn at once, and its numbers can be selected and copied.
    """
    scale = "".join(
        f'<i style="left:{100 * k / LEAST}%">{percent(10.0 ** (k - LEAST))}</i>'
        for k in range(LEAST + 1)
    )
    header = f'<th>layer</th><th class="scale"><div>{scale}</div></th>'
    header += "<th>kept</th><th>on a path</th><th>dead units</th><th></th>"
    rows = [_layer(row, m) for row, m in zip(table.itertuples(), live.values())]
    return f"<table><tr>{header}</tr>{''.join(rows)}</table>"


def _layer(row, m):
    dots = _dot(row.density, PALE, "nominal") + _dot(row.effective_density, DARK, "effective")
    dead = int((~m.flatten(1).any(1)).sum())
    bar = f"width:{100 * dead / len(m):.1f}%; background:{DEAD}"
    return (
        f'<tr><td>{row.layer}</td><td class="scale"><div>{dots}</div></td>'
        f"<td>{100 * row.density:.3g} %</td><td>{100 * row.effective_density:.3g} %</td>"
        f'<td class="dead"><div style="{bar}"></div></td><td>{dead} of {len(m)}</td></tr>'
    )


def _dot(density, colour, kind):
    """A density on the scale; nothing where it is 0, for which a logarithm has no place."""
    if not density:
        return ""
    place = 100 * max(0, 1 + math.log10(density) / LEAST)
    return f'<b style="left:{place:.1f}%; background:{colour}" class="{kind}"></b>'


def first_layer(pruned):
    """Weights kept of each input pixel.

    Of a convolution its kernels side by side, the channels that they read added up.
    """
    m = next(iter(pruned.mask.values()))
    if m.dim() == 2:
        image, words = (
            m.sum(0).view(pruned.model.input_shape).sum(0).double(),
            "First layer: kept weights of each pixel",
        )
    else:
        words = f"First layer: its {len(m)} kernels"
        columns = math.ceil(len(m) ** 0.5)
        kernels = torch.full(
            (math.ceil(len(m) / columns) * columns, m.shape[2] + 1, m.shape[3] + 1),
            torch.nan,
            dtype=torch.double,
        )
        kernels[: len(m), :-1, :-1] = m.sum(1)
        image = (
            kernels.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
        )
    most = int(image.nan_to_num(0).max())
    colours = colormaps["cividis"].with_extremes(bad="white")(
        image.numpy() / max(most, 1), bytes=True
    )
    png = io.BytesIO()
    Image.fromarray(colours).save(png, "png")
    image = embedded(png, words, "image-rendering: pixelated; width: 160px")
    caption = f"{words}, from 0 (dark) to {most} (bright)"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def chart(title, across, draw):
    figure = Figure(figsize=(4.8, 2.7))
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(across)
    draw(axes)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.9, bottom=0.17)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return embedded(png, f"{title}, by {across}")


def transfers(moved):
    """From the dense network to each measured round, one line for each metric."""

    def draw(axes):
        for (metric, name), colour in zip(METRICS.items(), CURVES):
            points = [
                (row["round"], row["transfer"])
                for row in moved
                if row["metric"] == metric and row["transfer"] is not None
            ]
            if points:
                axes.plot(
                    *zip(*points),
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    label=f"{name} {points[-1][1]:.2f}",
                )
        low, high = axes.get_ylim()
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1)
        axes.set(xlim=(0, moved[-1]["round"] + 1), ylim=(min(low, -1.2), max(high, 1.2)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize="small")

    return chart("Force transfer: gained / lost", "round", draw)


def learning(curves, epochs):
    """Test accuracy of what was trained here, the newest bold."""

    def draw(axes):
        for place, (words, rows) in enumerate(curves):
            newest = place == len(curves) - 1
            axes.plot(
                [row["epoch"] for row in rows],
                [100 * row["test_accuracy"] for row in rows],
                color=CURVES[place % len(CURVES)],
                linewidth=2.2 if newest else 1,
                marker="o" if newest else "",
                markersize=3,
                label=f"{words}: {100 * rows[-1]['test_accuracy']:.1f}",
            )
        axes.set(ylim=(0, 101), xlim=(0, epochs + 1))
        if curves:
            axes.legend(fontsize="small")

    return chart("Test accuracy (%)", "epoch", draw)
