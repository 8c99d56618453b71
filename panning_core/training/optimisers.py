"""What moves the weights: SGD or Adam as a recipe says, or any optimiser of PyTorch's kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from ..errors import UserError, pick, shown
from .recipe import Recipe

#: parameters -> what moves them
Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def _sgd(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def _adam(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Kingma & Ba 2015 with PyTorch's defaults; of the recipe it takes rate and weight decay."""
    return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay)


OPTIMISERS = {"sgd": _sgd, "adam": _adam}


def check_optimiser(optimiser: str | Factory) -> None:
    """Raise a ``UserError`` unless ``optimiser`` is a key of ``OPTIMISERS`` or can be called."""
    if isinstance(optimiser, str):
        pick("optimiser", optimiser, OPTIMISERS)
    elif not callable(optimiser) or isinstance(optimiser, torch.optim.Optimizer):
        raise UserError(
            f"optimiser is {shown(optimiser)}; it must be one of {', '.join(OPTIMISERS)} "
            "or a function that makes one of a list of parameters"
        )


def make_optimiser(
    optimiser: str | Factory, parameters: list[nn.Parameter], recipe: Recipe
) -> torch.optim.Optimizer:
    """What moves ``parameters``.

    Raises:
        UserError: a factory that makes something else, or an optimiser that PyTorch can not step
            without being called back, such as LBFGS.
    """
    if isinstance(optimiser, str):
        return OPTIMISERS[optimiser](parameters, recipe)
    made = optimiser(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"the optimiser's factory gives {shown(made)}; it must give a torch.optim.Optimizer"
        )
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{type(made).__name__} evaluates a batch several times a step, and one gradient "
            "a step is masked; choose an optimiser that steps without a closure"
        )
    return made
