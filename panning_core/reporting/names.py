"""How methods, networks and numbers are called in tables and drawn in figures.

``METHODS``, ``COLOURS`` and ``MARKERS`` say it for every method of ``methods.registry``: name ->
title, colour and marker. They are made when they are asked for, as a plugin may add a method at any
time.
"""

from __future__ import annotations

import pandas as pd

from ..methods import registry

MODELS = {
    "lenet300": "LeNet-300-100",
    "lenet5": "LeNet-5",
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "vgg16": "VGG-16",
}


def __getattr__(name: str) -> dict[str, str]:
    looks = {"METHODS": "title", "COLOURS": "colour", "MARKERS": "marker"}
    if name not in looks:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {key: getattr(method, looks[name]) for key, method in registry.METHODS.items()}
    return {key: look for key, look in found.items() if look is not None}


def label(run: pd.Series) -> str:
    """A run's method with its rounds, where they are not the method's own."""
    if pd.isna(run["rounds"]):
        return method_name(run["method"])
    rounds = int(run["rounds"])
    name = method_name(run["method"]).removesuffix("-100")
    return f"{name}, {rounds} round{'s' if rounds > 1 else ''}"


def method_name(method: str) -> str:
    """The method's title in tables and figures; what has no record keeps its name."""
    found = registry.METHODS.get(method)
    return found.title if found else method


def percent(sparsity: float) -> str:
    """0.995 -> ``"99.5 %"``."""
    return f"{100 * sparsity:.6g} %"
