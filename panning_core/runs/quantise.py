"""Prune and quantise weights and activations while training, in either order (arXiv 2110.08271).

LeNet-300-100 with BatchNorm on the first images of a data set. Before every ReLU stands
BatchNorm -> prune -> quantise; the input is quantised too, and a layer computes with
quantise(prune(weight)). Unlike the paper's networks this one has most of its weights in the first
layer, so that layer is pruned; the last one is only quantised, as published. Linear layers have one
scale a tensor in the authors' code, too. An operator's scale, once chosen, stays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import data, models, training
from ..data import Split, Splits
from ..errors import UserError, fraction, is_number, pick, whole
from ..methods.quantisation import CUTS, ROUNDINGS, Operator, coded_bits, cubic, stored_bits
from . import base

INTERVAL = 0.06  #: of the training between two cuts: 15 of 250 epochs
DELAY = 0.02  #: of the training from the weights' quantisation to the activations': 5 of 250 epochs
FLOAT = 32  #: bits of a weight that is not quantised
MOST = 16  #: bits that float32 can stand for on a grid around 0


@dataclass(frozen=True)
class Quantise(base.Run):
    """One training: SGD with momentum 0.9, weight decay 5e-4, a cosine by epoch, as published.

    Attributes:
        seed: of the initial weights and the order of the images.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        epochs, batch_size, lr: of the training.
        sparsity, activation_sparsity: at the end, of each tensor by itself; 0 is not pruned.
        bits, activation_bits: sign included; None stays in float32.
        prune_at: fraction of the training after which pruning starts; its four cuts follow
            ``INTERVAL`` apart, the first one ``INTERVAL`` later.
        quantise_at: fraction of the training after which weights are quantised; activations
            ``DELAY`` later.
        rounding: ``"truncate"`` toward zero, as published, or to the ``"nearest"``.
    """

    kind: ClassVar[str] = "quantise"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    epochs: int = 30
    batch_size: int = 50
    lr: float = 0.1
    sparsity: float = 0.5
    activation_sparsity: float = 0.5
    bits: int | None = 8
    activation_bits: int | None = 8
    prune_at: float = 0.4
    quantise_at: float = 0.92
    rounding: str = "truncate"

    def __post_init__(self):
        for name, least in (("seed", 0), ("epochs", 1), ("batch_size", 2)):
            whole(f"{name} of quantise", getattr(self, name), least)
        if self.images is not None:
            whole("images of quantise", self.images, 2)
        if not is_number(self.lr) or not self.lr > 0:
            raise UserError(f"lr of quantise is {self.lr!r}; it must be a number above 0")
        for name in ("sparsity", "activation_sparsity", "prune_at", "quantise_at"):
            fraction(f"{name} of quantise", getattr(self, name))
        for name in ("bits", "activation_bits"):
            _check_bits(name, getattr(self, name))
        pick("rounding", self.rounding, ROUNDINGS)
        for name, length in (("prune_at", CUTS * INTERVAL), ("quantise_at", DELAY)):
            if getattr(self, name) + length > 1:
                raise UserError(
                    f"{name} of quantise is {getattr(self, name)!r}; what it starts takes "
                    f"{length:g} of the training, so it must be at most {1 - length:g}"
                )

    def execute(self, context: base.Context) -> dict:
        splits = data.load(self.dataset).to(context.device)
        model = network(splits, self.seed, self.rounding).to(context.device)
        seen = splits.train.first(self.images)
        train(self, model, seen)
        found = measured(self, model, splits)
        recalibrate(model, seen.x)
        return {**found, "recalibrated_test_accuracy": accuracy(model, splits.test)}


def _check_bits(name: str, bits: int | None) -> None:
    if bits is not None and whole(f"{name} of quantise", bits, 1) > MOST:
        raise UserError(f"{name} of quantise is {bits}; it must be from 1 to {MOST}, or None")


def network(splits: Splits, seed: int, rounding: str = "truncate") -> nn.Sequential:
    """``models.build``'s LeNet-300-100 with BatchNorm, and operators that do nothing yet."""
    plain = models.build("lenet300", splits.input_shape, splits.classes, seed)
    inputs = plain.fc1.in_features
    layers = OrderedDict(
        flatten=plain.flatten, input=Operator((inputs,), rounding, activation=True)
    )
    for number, layer in enumerate((plain.fc1, plain.fc2), 1):
        width = layer.out_features
        layers[f"fc{number}"] = layer
        layers[f"bn{number}"] = nn.BatchNorm1d(width)
        layers[f"operator{number}"] = Operator((width,), rounding, activation=True)
        layers[f"relu{number}"] = nn.ReLU()
    layers["fc3"] = plain.fc3
    for name in ("fc1", "fc2", "fc3"):
        layer = layers[name]
        weight = Operator(layer.weight.shape, rounding)
        parametrize.register_parametrization(layer, "weight", weight)
    return nn.Sequential(layers)


def linear(model: nn.Module) -> list[tuple[Tensor, Operator]]:
    """The raw weight of each layer, and its operator."""
    pairs = [m.parametrizations.weight for m in model if isinstance(m, nn.Linear)]
    return [(pair.original, pair[0]) for pair in pairs]


def activations(model: nn.Module) -> list[Operator]:
    """Those of the input and of both hidden layers."""
    return [module for module in model if isinstance(module, Operator)]


def schedule(run: Quantise, model: nn.Module, steps: int) -> dict[int, list[Callable[[], None]]]:
    """Step -> what happens before it, in the order in which an operator computes: cut, then fix."""
    due: dict[int, list[Callable[[], None]]] = {}

    def add(at: float, what: Callable[[], None]) -> None:
        due.setdefault(round(at * steps), []).append(what)

    for cut in range(1, CUTS + 1):
        at = run.prune_at + cut * INTERVAL
        if run.sparsity:
            for weight, operator in linear(model)[:-1]:
                add(at, lambda w=weight, o=operator, k=cut: o.cut(cubic(run.sparsity, k), w))
        if run.activation_sparsity:
            for operator in activations(model)[1:]:
                add(at, lambda o=operator, k=cut: o.cut(cubic(run.activation_sparsity, k)))
    if run.bits:
        for weight, operator in linear(model):
            add(run.quantise_at, lambda w=weight, o=operator: o.fix(run.bits, w))
    if run.activation_bits:
        for operator in activations(model):
            add(run.quantise_at + DELAY, lambda o=operator: o.fix(run.activation_bits))
    return due


def train(run: Quantise, model: nn.Module, split: Split) -> None:
    """All epochs; the order of the images follows from the run's seed."""
    generator = torch.Generator().manual_seed(run.seed)
    optimiser = torch.optim.SGD(model.parameters(), run.lr, momentum=0.9, weight_decay=5e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, run.epochs)
    steps = run.epochs * -(-len(split) // run.batch_size)
    due, step = schedule(run, model, steps), 0
    model.train()
    for _ in range(run.epochs):
        for chosen in torch.randperm(len(split), generator=generator).split(run.batch_size):
            for happen in due.get(step, ()):
                happen()
            loss = nn.functional.cross_entropy(model(split.x[chosen]), split.y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        cosine.step()
    # What is due when the last step is done.
    for happen in due.get(steps, ()):
        happen()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of right answers in eval mode."""
    model.eval()
    return training.accuracy(model(split.x.clone()), split.y)


@torch.no_grad()
def recalibrate(model: nn.Module, x: Tensor) -> None:
    """Gather BatchNorm's statistics anew over all of ``x``, for the operators as they are now."""
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
            # A plain mean over the batches.
            module.momentum = None
    model.train()
    for part in x.chunk(max(1, len(x) // 1000)):
        model(part)


@torch.no_grad()
def measured(run: Quantise, model: nn.Module, splits: Splits) -> dict:
    """What is left, and how good it is.

    Returns:
        ``test_accuracy``, ``validation_accuracy``; ``weights``, ``kept_weights``; ``zeros``, the
        share of weights that are 0 in what is evaluated, whoever made them so; ``bits_per_weight``
        of ``stored_bits``, and ``coded_bits_per_weight`` of ``coded_bits`` (None in float32);
        ``decimals`` and ``activation_decimals``, a number a tensor (None in float32);
        ``activations_kept``, a share a hidden layer.
    """
    pairs = linear(model)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    count = sum(weight.numel() for weight in weights)
    stored = sum(stored_bits(operator.mask, run.bits or FLOAT) for _, operator in pairs)
    coded = _six(sum(map(coded_bits, weights)) / count) if run.bits else None
    return {
        "test_accuracy": accuracy(model, splits.test),
        "validation_accuracy": accuracy(model, splits.validation),
        "weights": count,
        "kept_weights": sum(int(operator.mask.sum()) for _, operator in pairs),
        "zeros": _six(sum(int((weight == 0).sum()) for weight in weights) / count),
        "bits_per_weight": _six(stored / count),
        "coded_bits_per_weight": coded,
        "decimals": [operator.decimals for _, operator in pairs],
        "activation_decimals": [operator.decimals for operator in activations(model)],
        "activations_kept": [_six(o.mask.double().mean()) for o in activations(model)[1:]],
    }


def _six(value: float) -> float:
    """Six significant digits."""
    return float(f"{float(value):.6g}")
