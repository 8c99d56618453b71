"""Scales of a figure's axes."""

from __future__ import annotations

from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator


def logarithmic(axis: Axis, *steps: float) -> None:
    """Ticks of a logarithmic axis at these places of every decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
