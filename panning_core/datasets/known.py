"""What is known of data sets by their names: titles, and how the authors scale them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError, unknown

#: how pixels become inputs; ``authors`` is what the code of Kang et al. 2022 does (``AUTHORS``)
NORMALISATIONS = ("standardised", "authors")
#: data set -> the value of a white pixel, and mean and deviation per channel of pixels in [0, 1]
AUTHORS = {
    "digits": (16, (0.5,), (0.5,)),  # they have no digits: as MNIST
    "mnist": (255, (0.5,), (0.5,)),
    "fashion-mnist": (255, (0.1307,), (0.3081,)),
    **dict.fromkeys(
        ("cifar10", "cifar10-jpeg"), (255, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    ),
}
TITLES = {
    "digits": "scikit-learn digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "cifar10-jpeg": "CIFAR-10 (JPEG copy)",
}


def check_normalisation(name: str, normalisation: str) -> str:
    """``normalisation`` if the data set ``name`` has it, else a ``UserError``."""
    if normalisation not in NORMALISATIONS:
        raise unknown("normalisation", normalisation, NORMALISATIONS)
    if normalisation == "authors" and name not in AUTHORS:
        raise UserError(
            f"the authors' normalisation is known for {', '.join(AUTHORS)}, not for {name}; "
            "use standardised"
        )
    return normalisation


def authors_scale(name: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, channels, 1, 1] of raw pixels that give the authors' input."""
    white, *scale = AUTHORS[name]
    mean, deviation = (white * torch.tensor(each).view(1, -1, 1, 1) for each in scale)
    return mean, deviation
