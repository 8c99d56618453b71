"""How methods, networks and numbers are called in tables and drawn in figures."""

from __future__ import annotations

import pandas as pd

#: How tables and figures show a method, in the order in which they list them: name, colour, marker.
LOOKS = {
    "dense": ("dense", "black", "_"),
    "panning-agent": ("Panning (agent)", "#e377c2", "*"),
    "panning": ("Panning (staged, sum)", "#d62728", "o"),
    "panning-product": ("Panning (staged, product)", "#ff9896", "o"),
    "panning-masked": ("Panning (masked product)", "#a50f15", "o"),
    "synflow": ("SynFlow-100", "#1f77b4", "s"),
    "iterative-snip": ("Iterative SNIP-100", "#2ca02c", "D"),
    "force": ("FORCE-100", "#98df8a", "^"),
    "ntk-sap": ("NTK-SAP", "#17becf", "d"),
    "prospr": ("ProsPr", "#ff7f0e", "p"),
    "snip": ("SNIP", "#9467bd", "v"),
    "grasp": ("GraSP (signed)", "#8c564b", "P"),
    "grasp-abs": ("GraSP (absolute)", "#c49c94", "X"),
    "phew": ("PHEW", "#393b79", "h"),
    "smart-ratio": ("smart ratio", "#9c9ede", ">"),
    "magnitude": ("magnitude", "#7f7f7f", "s"),
    "random": ("random", "#bcbd22", "."),
    "gumbel-softmax": ("Gumbel-Softmax gates", "#006d5b", "*"),
    "iterative-magnitude": ("iterative magnitude", "#e6ab02", "<"),
    "trained-magnitude": ("magnitude after training", "#666666", "8"),
}
METHODS = {method: name for method, (name, _, _) in LOOKS.items()}
COLOURS = {method: colour for method, (_, colour, _) in LOOKS.items()}
MARKERS = {method: marker for method, (_, _, marker) in LOOKS.items()}
MODELS = {
    "lenet300": "LeNet-300-100",
    "lenet5": "LeNet-5",
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "vgg16": "VGG-16",
}


def label(run: pd.Series) -> str:
    """A run's method with its rounds, where they are not the method's own."""
    if pd.isna(run["rounds"]):
        return method_name(run["method"])
    return f"{method_name(run['method']).removesuffix('-100')}, {int(run['rounds'])} round{'s' if run['rounds'] > 1 else ''}"


def method_name(method: str) -> str:
    """The method's name in tables and figures; a method of your own keeps its key."""
    return METHODS.get(method, method)


def percent(sparsity: float) -> str:
    """0.995 -> ``"99.5 %"``."""
    return f"{100 * sparsity:.6g} %"
