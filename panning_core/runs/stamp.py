"""Channels of a trained network, chosen for a new task from a set of its images (STAMP).

Song et al. 2020 (arXiv 2006.12139); ``methods.set_pruning`` says what is theirs and what is ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import data, training
from ..errors import UserError, fraction_kept, pick, whole
from ..methods import set_pruning
from . import base

#: who chooses the channels; a wrong set is one of the reference
ARMS = ("whole", "stamp", "no-set", "wrong-set", "magnitude", "activation", "random")
GENERATED = ("stamp", "no-set", "wrong-set")
SET = 100  #: images that a generator looks at
LOOKS = (
    20,
    60,
    200,
)  #: steps of fine-tuning after which accuracy is measured, where there are so many
RATE, MOMENTUM, BATCH = 0.05, 0.9, 64


@dataclass(frozen=True)
class Stamp(base.Run):
    """One network, pruned for one target set and trained on it for a few steps.

    Attributes:
        arm: one of ``ARMS``.
        reference, target: what the network and the generator have learned, and what it is pruned
            for; keys of ``data.names()`` with pictures of one shape. Where both are the same, the
            pictures of the target are mirrored.
        density: share of each layer's channels that stays.
        reference_images, images: of training, so many of the first.
        meta_steps: of the generator.
        steps: of fine-tuning.
        seed: of the initialisation, the tasks and the order of the images.
    """

    kind: ClassVar[str] = "stamp"
    arm: str = "stamp"
    reference: str = "fashion-mnist"
    target: str = "mnist"
    density: float = 0.3
    reference_images: int = 20_000
    images: int = 500
    meta_steps: int = 300
    steps: int = 200
    seed: int = 0

    def __post_init__(self):
        pick("arm", self.arm, dict.fromkeys(ARMS))
        for name in ("reference", "target"):
            pick("data set", getattr(self, name), dict.fromkeys(data.names()))
        if not fraction_kept(self.density):
            raise UserError("density is 0; every layer needs a channel")
        whole("seed", self.seed)
        for name in ("reference_images", "images", "meta_steps", "steps"):
            whole(name, getattr(self, name), 1)

    def reads(self) -> tuple[str, ...]:
        return (self.reference, self.target)

    def execute(self, context: base.Context) -> dict:
        return Adaptation(self).result()


def pictures(x: Tensor) -> Tensor:
    """Pictures of at most 16 pixels: larger ones are averaged over 2 x 2."""
    return nn.functional.avg_pool2d(x, 2) if min(x.shape[2:]) > 16 else x


class Adaptation:
    """From the reference to the target."""

    def __init__(self, run: Stamp):
        self.run = run
        reference, target = data.load(run.reference), data.load(run.target)
        if reference.input_shape != target.input_shape or reference.classes != target.classes:
            raise UserError(
                f"{run.reference} and {run.target} differ in the shape of a picture or the number "
                "of classes; a network is passed on between alike ones"
            )
        mirrored = run.reference == run.target

        def seen(part: data.Split, most: int | None = None) -> tuple[Tensor, Tensor]:
            part = part.first(most)
            x = pictures(part.x)
            return (x.flip(-1) if mirrored else x), part.y

        self.classes = target.classes
        source = reference.train.first(run.reference_images)
        self.reference = pictures(source.x), source.y
        self.target = seen(target.train, run.images)
        self.test, self.validation = seen(target.test), seen(target.validation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.network = set_pruning.Network(self.target[0].shape[1:], self.classes)
            # The same for every arm.
            self.head = nn.Linear(self.network.head.in_features, self.classes)

    def result(self) -> dict:
        self._train(*self.reference, epochs=2)
        start = time.perf_counter()
        gates = self._gates()
        seconds = time.perf_counter() - start
        self.network.head.load_state_dict(self.head.state_dict())
        accuracies = self._fine_tune(gates)
        kept = {name: int(gate.sum()) for name, gate in gates.items()}
        return {
            "test_accuracy": accuracies[-1],
            "validation_accuracy": self._accuracy(*self.validation, gates),
            "accuracies": accuracies,
            "looks": [look for look in LOOKS if look <= self.run.steps],
            "kept": kept,
            "macs_share": base.short(self._macs(kept) / self._macs(set_pruning.CHANNELS)),
            "places": {name: gate.nonzero().flatten().tolist() for name, gate in gates.items()},
            "choose_seconds": base.short(seconds),
        }

    def _train(self, x: Tensor, y: Tensor, epochs: int) -> None:
        sgd = torch.optim.SGD(self.network.parameters(), RATE, momentum=MOMENTUM)
        generator = torch.Generator().manual_seed(self.run.seed)
        for _ in range(epochs):
            for places in torch.randperm(len(y), generator=generator).split(BATCH):
                sgd.zero_grad()
                nn.functional.cross_entropy(self.network(x[places]), y[places]).backward()
                sgd.step()

    def _gates(self) -> dict[str, Tensor]:
        run, network = self.run, self.network
        generator = torch.Generator().manual_seed(20_000 + run.seed)
        if run.arm == "whole":
            return {name: torch.ones(width) for name, width in set_pruning.CHANNELS.items()}
        if run.arm in GENERATED:
            made = set_pruning.meta_learn(
                network, *self.reference, run.density, run.meta_steps, run.seed,
                sees=run.arm != "no-set",
            )  # fmt: skip
            source = self.reference if run.arm == "wrong-set" else self.target
            with torch.no_grad():
                return set_pruning.hard(made(network, source[0][:SET]), run.density)
        if run.arm == "activation":
            with torch.no_grad():
                answers = network.features(self.target[0][:SET])
            values = {n: a.transpose(0, 1).flatten(1).mean(1) for n, a in answers.items()}
        elif run.arm == "magnitude":
            values = {
                n: getattr(network, n).weight.detach().flatten(1).norm(dim=1)
                for n in set_pruning.CHANNELS
            }
        else:
            values = {
                n: torch.rand(w, generator=generator) for n, w in set_pruning.CHANNELS.items()
            }
        return set_pruning.hard(values, run.density)

    def _fine_tune(self, gates: dict[str, Tensor]) -> list[float]:
        run, (x, y) = self.run, self.target
        sgd = torch.optim.SGD(self.network.parameters(), RATE, momentum=MOMENTUM)
        generator = torch.Generator().manual_seed(30_000 + run.seed)
        found = []
        for step in range(1, run.steps + 1):
            places = torch.randperm(len(y), generator=generator)[:BATCH]
            sgd.zero_grad()
            nn.functional.cross_entropy(self.network(x[places], gates), y[places]).backward()
            sgd.step()
            if step in LOOKS or step == run.steps:
                found.append(self._accuracy(*self.test, gates))
        return found

    @torch.no_grad()
    def _accuracy(self, x: Tensor, y: Tensor, gates: dict[str, Tensor]) -> float:
        parts = [self.network(part, gates) for part in x.split(1000)]
        return training.accuracy(torch.cat(parts), y)

    def _macs(self, kept: dict[str, int]) -> float:
        """Multiply-adds of one picture with so many channels a layer."""
        channels, height, width = self.target[0].shape[1:]
        one = 9 * height * width * channels * kept["conv1"]
        two = 9 * (height // 2) * (width // 2) * kept["conv1"] * kept["conv2"]
        pixels = (height // 4) * (width // 4)
        return one + two + pixels * kept["conv2"] * kept["fc"] + kept["fc"] * self.classes
