"""Published networks: (shape of an input, classes) -> network."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import Tensor, nn

from ..errors import UserError

Shape = tuple[int, ...]  #: (channels, height, width), or (features,) of rows


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
    """VGG with BatchNorm and one Linear(512) (Simonyan & Zisserman 2015, in its usual CIFAR
    form).
    """

    def build(shape: Shape, classes: int) -> nn.Module:
        if min(_image(shape)[1:]) < 32:
            raise UserError(
                "VGG halves its input five times and needs images of at least 32x32 pixels, got"
                f" {shape[1]}x{shape[2]}"
            )
        layers: list[nn.Module] = []
        channels = shape[0]
        for width in plan:
            if isinstance(width, str):
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
