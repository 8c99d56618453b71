"""Name -> network. Every network here is built from a seed and knows the shape of its input.

What there is to know of anyone's network is in ``graph``; ``prunable`` and the others are here too.
Plain networks are ``nn.Sequential``, so that another engine can read them layer by layer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from .errors import UserError, pick, shown, told, whole
from .graph import input_shape, linearised, modes, prunable, remember, uses  # noqa: F401
from .plugins import Table

Shape = tuple[int, ...]  # (channels, height, width), or (features,) of rows


def _image(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise UserError(
            f"convolutions need images (channels, height, width), got rows {list(shape)};"
            " lenet300 takes them"
        )
    return shape


def lenet300(shape: Shape, classes: int) -> nn.Module:
    """LeNet-300-100: 266,200 prunable weights on 28x28 grey images (LeCun et al. 1998)."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(prod(shape), 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5-Caffe (20-50-500): 430,500 prunable weights on 28x28 grey images.

    Unlike Caffe's it has a ReLU after each convolution (behind the pool, where it costs a quarter
    and gives the same): without them SGD at the published rate of 0.1 diverges within an epoch from
    either initialisation.
    """
    channels, height, width = _image(shape)
    if min(height, width) < 16:
        raise UserError(
            f"lenet5 needs images of at least 16x16 pixels, got {height}x{width}; lenet300 takes"
            " any size"
        )
    side = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * prod(side), 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )


def vgg(plan: list[int | str]):
    """VGG with BatchNorm and one Linear(512) (Simonyan & Zisserman 2015, in its usual CIFAR form)."""

    def build(shape: Shape, classes: int) -> nn.Module:
        if min(_image(shape)[1:]) < 32:
            raise UserError(
                "VGG halves its input five times and needs images of at least 32x32 pixels, got"
                f" {shape[1]}x{shape[2]}"
            )
        layers, channels = [], shape[0]
        for width in plan:
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
        return nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*layers),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(channels, classes),
            )
        )

    return build


class Block(nn.Module):
    """Basic residual block; a change of width or stride gets a 1x1 convolution with BatchNorm as
    its shortcut (He et al. 2016, option B).
    """

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu2 = nn.ReLU()
        self.shortcut = (
            nn.Sequential()
            if stride == 1 and inside == outside
            else nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(
            self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x)
        )


def resnet(widths: list[int], blocks: int):
    """A ResNet with a 3x3 stem; one group of ``blocks`` basic blocks for every width (He et al.
    2016, section 4.2).
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        groups, inside, (channels, *_) = [], widths[0], _image(shape)
        for group, width in enumerate(widths):
            for position in range(blocks):
                groups.append(Block(inside, width, stride=2 if group and not position else 1))
                inside = width
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
                bn=nn.BatchNorm2d(widths[0]),
                relu=nn.ReLU(),
                blocks=nn.Sequential(*groups),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(inside, classes),
            )
        )

    return build


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
    name: str, input_shape: Shape, classes: int, seed: int, init: str = "pytorch"
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
    model.input_shape = tuple(input_shape)
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


def check_batch(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise a ``UserError`` unless ``model`` answers images ``x`` [n, ...] with a number for each
    class that is among the labels ``y`` [n].
    """
    if not (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and y.dtype == torch.int64
        and y.shape == x.shape[:1]
        and len(y)
    ):
        found = " and ".join(
            (
                f"{each.dtype} {list(each.shape)}"
                if isinstance(each, Tensor)
                else type(each).__name__
            )
            for each in (x, y)
        )
        raise UserError(
            f"images and labels are {found}; they must be tensors [n, channels, height, width]"
            " and int64 [n]"
        )
    if not x.isfinite().all():
        raise UserError("the images hold values that are not finite numbers")
    try:
        with torch.no_grad(), modes(model, training=False):
            classes = model(x[:1]).shape[1]
    except Exception as error:  # another shape, dtype or device: PyTorch raises many kinds
        wanted = f", it takes {list(model.input_shape)}" if hasattr(model, "input_shape") else ""
        raise UserError(
            f"the network ({next(model.parameters()).dtype} on"
            f" {next(model.parameters()).device}{wanted}) can not read images"
            f" {list(x.shape[1:])} of {x.dtype} on {x.device}: {str(error).partition(chr(10))[0]}"
        ) from error
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(
            f"labels go from {y.min()} to {y.max()}; the network knows the classes 0 to"
            f" {classes - 1}"
        )
    remember(model, x)
