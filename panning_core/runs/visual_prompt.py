"""A mask and a picture frame, learned together for a new task (Jin et al., arXiv 2312.01397).

A network that has learned one data set is pruned for another: by magnitude, or by scores that are
trained while the weights stay. VPNs train a visual prompt, a frame added to every picture, with the
scores, and then weights and prompt. In their code each iteration makes two updates, one on prompted
pictures and one on plain ones; the rival with two plain updates is the fair one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import data, masks, models, training
from ..errors import UserError, fraction_kept, is_number, pick, whole
from ..methods.learned_scores import Prompt, Scores
from . import base

#: how the mask is found and trained -> updates of an iteration in the two stages; "p" is on
#: prompted pictures, "x" on plain ones
ARMS = {
    "magnitude": ("", "xx"),
    "scores": ("x", "x"),
    "scores-twice": ("xx", "xx"),
    "post-hoc": ("xx", "px"),
    "vpn": ("px", "px"),
}
DECAY, MOMENTUM = 1e-4, 0.9
PRETRAINING_RATE = 0.1


@dataclass(frozen=True)
class VisualPrompt(base.Run):
    """One network, pruned for one target.

    Attributes:
        arm: a key of ``ARMS``.
        source, target: what the network has learned before, and what it is pruned for; keys of
            ``data.names()`` with pictures of one shape. Where both are the same, the pictures of
            the target are mirrored.
        model: a key of ``models.MODELS``.
        density: fraction of the weights that is kept.
        frame: pixels of the prompt on each side.
        source_images, images: of training, so many of the first; source_epochs on the former.
        epochs: of each of the two stages.
        batch_size: images of a batch.
        score_lr, prompt_lr: of Adam, for scores and prompt; ``lr`` of SGD for the weights.
        seed: of the initialisation and the order of the images.
    """

    kind: ClassVar[str] = "visual-prompt"
    arm: str = "vpn"
    source: str = "mnist"
    target: str = "fashion-mnist"
    model: str = "lenet300"
    density: float = 0.1
    frame: int = 4
    source_images: int = 20_000
    source_epochs: int = 2
    images: int = 3_000
    epochs: int = 6
    batch_size: int = 64
    score_lr: float = 1e-3
    prompt_lr: float = 1e-3
    lr: float = 0.01
    seed: int = 0

    def __post_init__(self):
        pick("arm", self.arm, ARMS)
        pick("model", self.model, models.MODELS)
        for name in ("source", "target"):
            pick("data set", getattr(self, name), dict.fromkeys(data.names()))
        if not fraction_kept(self.density):
            raise UserError("density is 0; a network needs weights")
        whole("seed", self.seed)
        for name in (
            *("frame", "source_images", "source_epochs", "images", "epochs", "batch_size"),
        ):
            whole(name, getattr(self, name), 1)
        for name in ("score_lr", "prompt_lr", "lr"):
            if not is_number(value := getattr(self, name)) or not value > 0:
                raise UserError(f"{name} is {value!r}; it must be a number above 0")

    def reads(self) -> tuple[str, ...]:
        return (self.source, self.target)

    def execute(self, context: base.Context) -> dict:
        start = time.perf_counter()
        found = Transfer(self).result()
        return {**found, "train_seconds": base.short(time.perf_counter() - start)}


class Transfer:
    """The two stages of one run."""

    def __init__(self, run: VisualPrompt):
        self.run = run
        source, target = data.load(run.source), data.load(run.target)
        if source.input_shape != target.input_shape or source.classes != target.classes:
            raise UserError(
                f"{run.source} and {run.target} differ in the shape of a picture or the number of "
                "classes; a network is passed on between alike ones"
            )
        if 2 * run.frame >= min(target.input_shape[1:]):
            raise UserError(f"frame is {run.frame}; pictures are {list(target.input_shape[1:])}")
        self.mirrored = run.source == run.target
        self.source, self.target = source, target
        self.x, self.y = self._seen(target.train)
        self.model = models.build(run.model, source.input_shape, source.classes, run.seed)
        self.prompt = Prompt(
            target.input_shape, run.frame, float(self.x.min()), float(self.x.max())
        )

    def _seen(self, split: data.Split) -> tuple[Tensor, Tensor]:
        if split is self.target.train:
            split = split.first(self.run.images)
        return (split.x.flip(-1) if self.mirrored else split.x), split.y

    def result(self) -> dict:
        first, second = ARMS[self.run.arm]
        self._pretrain()
        scores = Scores(self.model, self.run.density)
        self._train_scores(scores, first)
        mask = scores.mask()
        self._train_weights(mask, second)
        test, validation = self._seen(self.target.test), self._seen(self.target.validation)
        return {
            "test_accuracy": self._accuracy(*test),
            "prompted_test_accuracy": self._accuracy(self.prompt(test[0]).detach(), test[1]),
            "validation_accuracy": self._accuracy(*validation),
            "kept_weights": masks.count(mask),
            "effective_weights": masks.count(masks.effective(self.model, mask)),
            "layers": {name: int(m.sum()) for name, m in mask.items()},
            "prompt": base.short(
                float((self.prompt.delta.detach() * self.prompt.frame).abs().mean())
            ),
        }

    def _pretrain(self) -> None:
        run = self.run
        source = self.source.train.first(run.source_images)
        x, y = source.x, source.y
        sgd = torch.optim.SGD(self.model.parameters(), PRETRAINING_RATE, momentum=MOMENTUM)
        generator = torch.Generator().manual_seed(run.seed)
        for _ in range(run.source_epochs):
            for places in torch.randperm(len(y), generator=generator).split(run.batch_size):
                sgd.zero_grad()
                nn.functional.cross_entropy(self.model(x[places]), y[places]).backward()
                sgd.step()

    def _steps(self, stage: int, updates: str) -> Iterator[tuple[float, list[tuple[str, Tensor]]]]:
        """(factor of the rate, [(how, places of a batch), ...]) of each iteration; every update has
        an order of images of its own."""
        run, count = self.run, math.ceil(len(self.y) / self.run.batch_size)
        orders = [torch.Generator().manual_seed(1000 * stage + 10 * run.seed + i) for i in (1, 2)]
        for epoch in range(run.epochs):
            drawn = [
                torch.randperm(len(self.y), generator=each).split(run.batch_size)
                for each, _ in zip(orders, updates)
            ]
            for i, parts in enumerate(zip(*drawn)):
                done = (epoch * count + i) / (run.epochs * count)
                yield (1 + math.cos(math.pi * done)) / 2, list(zip(updates, parts))

    def _loss(self, how: str, places: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        x = self.prompt(self.x[places]) if how == "p" else self.x[places]
        logits = self.model(x) if weights is None else functional_call(self.model, weights, (x,))
        return nn.functional.cross_entropy(logits, self.y[places])

    def _train_scores(self, scores: Scores, updates: str) -> None:
        run = self.run
        adam = torch.optim.Adam(scores.values.values(), run.score_lr, weight_decay=DECAY)
        of_prompt = self._prompts_optimiser()
        self.model.requires_grad_(False)
        for factor, batches in self._steps(1, updates):
            for how, places in batches:
                loss = self._loss(how, places, scores.masked())
                _step(loss, factor, (adam, run.score_lr), (of_prompt, run.prompt_lr), how)
        self.model.requires_grad_(True)

    def _train_weights(self, mask: masks.Mask, updates: str) -> None:
        run, weights = self.run, models.prunable(self.model)
        sgd = torch.optim.SGD(
            self.model.parameters(), run.lr, momentum=MOMENTUM, weight_decay=DECAY
        )
        of_prompt = self._prompts_optimiser()
        _apply(weights, mask)
        for factor, batches in self._steps(2, updates):
            for how, places in batches:
                loss = self._loss(how, places)
                _step(loss, factor, (sgd, run.lr), (of_prompt, run.prompt_lr), how)
                _apply(weights, mask)

    def _prompts_optimiser(self) -> torch.optim.Adam:
        return torch.optim.Adam([self.prompt.delta], self.run.prompt_lr, weight_decay=DECAY)

    @torch.no_grad()
    def _accuracy(self, x: Tensor, y: Tensor) -> float:
        self.model.eval()
        return training.accuracy(torch.cat([self.model(part) for part in x.split(1000)]), y)


def _step(loss: Tensor, factor: float, own: tuple, prompts: tuple, how: str) -> None:
    """One update; the prompt moves on prompted pictures alone."""
    used = (own, prompts) if how == "p" else (own,)
    for optimiser, rate in used:
        optimiser.zero_grad()
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
    loss.backward()
    for optimiser, _ in used:
        optimiser.step()


@torch.no_grad()
def _apply(weights: dict[str, nn.Parameter], mask: masks.Mask) -> None:
    for name, w in weights.items():
        w.mul_(mask[name])
