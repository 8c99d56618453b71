"""Masks of channels from a set of images: a generator that is meta-learned (STAMP).

Set-based task-adaptive meta-pruning (Song et al. 2020, arXiv 2006.12139; only the abstract could be
read, and no code was found). What is known is kept: a generator reads a *set* of target images and
the activations of a trained network on it, and gives every channel a probability to stay; it is
meta-learned on subsets of a reference set. Sizes, relaxation, penalty and the refitted head are
choices of this laboratory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError

CHANNELS = {"conv1": 16, "conv2": 32, "fc": 64}
TEMPERATURE = 2 / 3
ENCODED = 32  #: numbers that describe a set
PENALTY = 10.0  #: of the squared distance of a layer's mean gate from the density
REFITS, REFIT_RATE = 10, 0.5  #: gradient steps of a head on a support set


class Network(nn.Module):
    """conv 16, conv 32, fc 64 and a head; each layer's channels can be gated."""

    def __init__(self, shape: Sequence[int], classes: int):
        super().__init__()
        channels, height, width = shape
        sizes = CHANNELS
        self.conv1 = nn.Conv2d(channels, sizes["conv1"], 3, padding=1)
        self.conv2 = nn.Conv2d(sizes["conv1"], sizes["conv2"], 3, padding=1)
        self.fc = nn.Linear(sizes["conv2"] * (height // 4) * (width // 4), sizes["fc"])
        self.head = nn.Linear(sizes["fc"], classes)

    def features(self, x: Tensor, gates: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Layer -> what its channels answer, gated; the last is what the head reads."""
        pool = nn.functional.max_pool2d
        found: dict[str, Tensor] = OrderedDict()
        for name in CHANNELS:
            x = getattr(self, name)(x.flatten(1) if name == "fc" else x).relu()
            if gates is not None:
                x = x * gates[name].view(1, -1, *[1] * (x.dim() - 2))
            found[name] = x
            x = pool(x, 2) if x.dim() == 4 else x
        return found

    def forward(self, x: Tensor, gates: dict[str, Tensor] | None = None) -> Tensor:
        return self.head(self.features(x, gates)["fc"])


class Generator(nn.Module):
    """A set of images -> a logit for each channel.

    Args:
        sees: False feeds zeros in place of the set: what is learned then is one mask for all tasks.
    """

    def __init__(self, size: int, sees: bool = True):
        super().__init__()
        self.sees = sees
        self.each = nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, ENCODED), nn.ReLU())
        self.whole = nn.Linear(ENCODED, ENCODED)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(ENCODED + 2 * width, width) for name, width in CHANNELS.items()}
        )

    def forward(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        encoded = self.whole(self.each(x.flatten(1)).mean(0)).relu()
        logits = {}
        with torch.no_grad():
            answers = network.features(x)
        for name, answer in answers.items():
            rows = answer.transpose(0, 1).flatten(1)
            known = [encoded, (rows.mean(1) + 1e-6).log(), (rows.std(1, correction=0) + 1e-6).log()]
            read = torch.cat(known)
            logits[name] = self.heads[name](read if self.sees else torch.zeros_like(read))
        return logits


def relaxed(logits: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Concrete gates in (0, 1) (Maddison et al. 2017)."""
    found = {}
    for name, logit in logits.items():
        noise = torch.rand(logit.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        found[name] = ((logit + noise.logit()) / TEMPERATURE).sigmoid()
    return found


def hard(values: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """1 for the share ``density`` of each layer's channels with the largest values, at least one;
    among equals the earlier stays."""
    found = {}
    for name, value in values.items():
        order = value.detach().argsort(descending=True, stable=True)
        found[name] = torch.zeros_like(value)
        found[name][order[: max(1, round(density * len(value)))]] = 1
    return found


def refitted(features: Tensor, y: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """A head [features -> classes] from zero, after a few gradient steps on a support set."""
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    for _ in range(REFITS):
        loss = nn.functional.cross_entropy(features @ weight.T, y)
        (gradient,) = torch.autograd.grad(loss, [weight])
        weight = (weight - REFIT_RATE * gradient).detach().requires_grad_()
    final = weight.detach()
    return lambda found: found @ final.T


def meta_learn(
    network: Network,
    x: Tensor,
    y: Tensor,
    density: float,
    steps: int,
    seed: int,
    sees: bool = True,
    classes: int = 5,
    size: int = 100,
) -> Generator:
    """A generator for ``network``, which is only read, from random tasks of a reference set.

    A task is ``classes`` of the set, ``size`` images to look at and as many to answer. First order:
    the head is fitted to the gated features of the support set and then stays.

    Raises:
        UserError: a reference set with fewer classes.
    """
    known = int(y.max()) + 1
    if known < classes:
        raise UserError(f"the reference set has {known} classes; a task needs {classes}")
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Generator(x[0].numel(), sees)
    adam = torch.optim.Adam(made.parameters(), 1e-3)
    members = [(y == label).nonzero().flatten() for label in range(known)]
    for _ in range(steps):
        chosen = torch.randperm(known, generator=draw)[:classes].tolist()
        pool = torch.cat([members[label] for label in chosen])
        places = pool[torch.randperm(len(pool), generator=draw)[: 2 * size]]
        support, query = places.split((len(places) + 1) // 2)
        gates = relaxed(made(network, x[support]), draw)
        fixed = {name: gate.detach() for name, gate in gates.items()}
        with torch.no_grad():
            features = network.features(x[support], fixed)["fc"]
        answer = refitted(features, y[support], known)(network.features(x[query], gates)["fc"])
        loss = nn.functional.cross_entropy(answer, y[query])
        for gate in gates.values():
            loss = loss + PENALTY * (gate.mean() - density).square()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return made
