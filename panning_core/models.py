"""Name -> network. Every network here is built from a seed and knows the shape of its input.

What there is to know of anyone's network is in ``graph``; ``prunable`` and the others are here too.
Plain networks are ``nn.Sequential``, so that another engine can read them layer by layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .errors import UserError, pick, shown, told, whole
from .graph import input_shape, modes, prunable, uses  # noqa: F401
from .names import Table
from .paths import linearised  # noqa: F401
from .zoo import Shape, lenet5, lenet300, resnet, vgg

#: name -> a function of (shape of an input, classes) that gives the network; a user may add some
MODELS = Table(
    __name__ + ".MODELS",
    {
        "lenet300": lenet300,
        "lenet5": lenet5,
        "vgg11": vgg(
            [64, "pool", 128, "pool", *[256] * 2, "pool", *[512] * 2, "pool", *[512] * 2, "pool"]
        ),
        "vgg16": vgg(
            [
                *[64] * 2,
                "pool",
                *[128] * 2,
                "pool",
                *[256] * 3,
                "pool",
                *[512] * 3,
                "pool",
                *[512] * 3,
                "pool",
            ]
        ),
        "vgg19": vgg(
            [
                *[64] * 2,
                "pool",
                *[128] * 2,
                "pool",
                *[256] * 4,
                "pool",
                *[512] * 4,
                "pool",
                *[512] * 4,
                "pool",
            ]
        ),
        "resnet18": resnet([64, 128, 256, 512], 2),
        "resnet20": resnet([16, 32, 64], 3),
        # Twice as wide as He et al.'s, as GraSP's and Panning's code have it.
        "resnet32": resnet([32, 64, 128], 5),
    },
)


def _panning_init(model: nn.Module) -> None:
    """Convolutions Kaiming-normal (fan-out), Linear N(0, 0.01), biases 0, BatchNorm 1 and 0 (the
    authors' code).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


INITS = Table(__name__ + ".INITS", {"pytorch": lambda model: None, "panning": _panning_init})


def build(
    name: str,
    input_shape: Shape,  # noqa: F811
    classes: int,
    seed: int,
    init: str = "pytorch",  # noqa: F811
) -> nn.Module:
    """The network ``name`` in train mode, its weights a function of ``seed`` alone; the global
    random state is left as it was.

    Args:
        name: a key of ``MODELS``.
        input_shape: (channels, height, width), or (features,) for rows and tokens; stored as
            ``model.input_shape``.
        classes: length of the output.
        seed: of every random weight.
        init: ``"pytorch"`` (PyTorch's defaults) or ``"panning"`` (the authors').

    Raises:
        UserError: unknown name or initialisation, numbers out of range, or inputs that the network
            can not have.
    """
    make, initialise = pick("model", name, MODELS), pick("initialisation", init, INITS)
    if not isinstance(input_shape, Sequence) or len(input_shape) not in (1, 3):
        raise UserError(
            f"input_shape is {input_shape!r}; it must be (channels, height, width), or"
            " (features,) for rows"
        )
    sizes = ("channels", "height", "width") if len(input_shape) == 3 else ("features",)
    numbers = [*zip(sizes, input_shape), ("classes", classes)]
    for kind, value, least in (*((*each, 1) for each in numbers), ("seed", seed, 0)):
        whole(kind, value, least)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(name, make, tuple(input_shape), classes)
        initialise(model)
    model.input_shape = tuple(input_shape)  # type: ignore[assignment]
    return model


def _made(
    name: str, make: Callable[[Shape, int], nn.Module], shape: Shape, classes: int
) -> nn.Module:
    try:
        model = make(shape, classes)
    except UserError:
        raise
    except Exception as error:  # of a network that the user has registered
        raise UserError(
            f"{name} can not be made for inputs {list(shape)} and {classes} classes: {told(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} of models.MODELS gives {shown(model)}; it must give an nn.Module")
    return model


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the prunable weights as they are now, 12 hex digits."""
    digest = hashlib.sha256()
    for weight in prunable(model).values():
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
