"""Inducing Gaussian process networks (2204.09889) beside their rivals, on a network that may be
pruned before training."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import data, masks, metrics
from ..analysis import calibration
from ..errors import UserError, is_number, pick, unknown, whole
from ..models import prunable
from . import base

#: what is put on the features: a linear function, the Gaussian process of inducing values, or a
#: variational one; ``svgp`` is the last on the inputs themselves, with a length for each of them
MODELS = ("network", "ign", "deep-kernel", "svgp")
FEATURES = 8  #: the network's outputs, each standardised over the batch
SCORED = 100  #: training inputs of each class from which the network is pruned


class Part(NamedTuple):
    """Inputs [n, d] and answers [n], float64; the answers of two classes are 0 and 1."""

    x: Tensor
    y: Tensor


class Problem(NamedTuple):
    """A task with its parts; ``binary``: two classes, else a number is asked for."""

    train: Part
    validation: Part
    test: Part
    binary: bool


def _numbers(x: Tensor, y: Tensor, sizes: tuple[int, int], order: Tensor) -> Problem:
    """Regression: ``sizes`` rows to train and to choose on, the rest to test; all standardised by
    the mean and deviation of the first."""
    parts = order.split([*sizes, len(y) - sum(sizes)])
    x, y = ((t - t[parts[0]].mean(0)) / t[parts[0]].std(0) for t in (x, y))
    return Problem(*(Part(x[rows], y[rows]) for rows in parts), binary=False)


def friedman(generator: torch.Generator) -> Problem:
    """Friedman's first function of ten inputs with noise of deviation 1: 1,600, 400 and 2,000."""
    from sklearn.datasets import make_friedman1

    seed = int(torch.randint(2**31, (), generator=generator))
    x, y = (torch.from_numpy(each) for each in make_friedman1(4000, noise=1.0, random_state=seed))
    return _numbers(x, y, (1600, 400), torch.arange(4000))


def diabetes(generator: torch.Generator) -> Problem:
    """scikit-learn's diabetes: 300 patients to train, 50 to choose, 92 to test."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.from_numpy(each) for each in load_diabetes(return_X_y=True))
    return _numbers(x, y, (300, 50), torch.randperm(len(y), generator=generator))


def images(name: str, first: int, second: int) -> Callable[[torch.Generator], Problem]:
    """Two classes of a data set of images, at half their resolution: at most 1,500 and 500 images
    of the training and the validation split, and all of the test split."""

    def make(generator: torch.Generator) -> Problem:
        splits, parts = data.load(name), []
        for split, most in ((splits.train, 1500), (splits.validation, 500), (splits.test, None)):
            rows = ((split.y == first) | (split.y == second)).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)[:most]]
            x = nn.functional.avg_pool2d(split.x[rows], 2).flatten(1).double()
            parts.append(Part(x, (split.y[rows] == second).double()))
        return Problem(*parts, binary=True)

    return make


TASKS: dict[str, Callable[[torch.Generator], Problem]] = {
    "friedman": friedman,
    "diabetes": diabetes,
    "mnist-3-5": images("mnist", 3, 5),
    "fashion-mnist-0-6": images("fashion-mnist", 0, 6),
    "digits-3-5": images("digits", 3, 5),
}


@dataclass(frozen=True)
class GaussianProcess(base.Run):
    """One training, and the epoch with the best likelihood on validation data.

    Attributes:
        seed: of the data drawn, the initial values and the order.
        task: a key of ``TASKS``.
        model: one of ``MODELS``.
        density: of the network's weights, pruned by SNIP before training; two classes only.
        points: inducing points.
        width: of the network's two hidden layers.
        epochs, batch, lr: of Adam.
    """

    kind: ClassVar[str] = "gaussian-process"
    needs: ClassVar[tuple[str, ...]] = ("gpytorch",)
    seed: int = 0
    task: str = "friedman"
    model: str = "ign"
    density: float = 1.0
    points: int = 50
    width: int = 100
    epochs: int = 40
    batch: int = 100
    lr: float = 0.003

    def __post_init__(self):
        pick("task", self.task, TASKS)
        if self.model not in MODELS:
            raise unknown("model of a Gaussian process", self.model, MODELS)
        for name, least in (("seed", 0), ("points", 2), ("width", 1), ("epochs", 1), ("batch", 2)):
            whole(f"{name} of a Gaussian process", getattr(self, name), least)
        for name, most in (("density", 1), ("lr", float("inf"))):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= most:
                raise UserError(
                    f"{name} of a Gaussian process is {value!r}; it must be a number above 0"
                    + f", {most} at most" * (most == 1)
                )
        if self.density < 1 and (self.model == "svgp" or self.task in ("friedman", "diabetes")):
            raise UserError(
                f"density is {self.density}, and {self.model} on {self.task} is not pruned; SNIP "
                "prunes a network that tells two classes apart"
            )

    def reads(self) -> tuple[str, ...]:
        name = self.task.rsplit("-", 2)[0]  # of a data set, where the task is two of its classes
        return (name,) if name in data.names() else ()

    def execute(self, context: base.Context) -> dict:
        with torch.random.fork_rng(devices=[]):
            # GPyTorch draws a variational distribution's first values from the global state.
            torch.manual_seed(self.seed)
            return execute(self)


def network(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them; weights N(0, 2 / fan-in), no biases at first."""
    modules: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inside, outside, dtype=torch.double)
        with torch.no_grad():
            weight = torch.randn(outside, inside, generator=generator, dtype=torch.double)
            layer.weight.copy_(weight * (2 / inside) ** 0.5)
            layer.bias.zero_()
        modules += [layer, nn.ReLU()]
    made = nn.Sequential(*modules[:-1])
    made.input_shape = (sizes[0],)
    return made


def snip(
    trunk: nn.Sequential, part: Part, density: float, generator: torch.Generator
) -> masks.Mask:
    """SNIP's mask of the trunk, scored with a linear layer of two outputs behind it that stays
    whole and is thrown away."""
    if density == 1:
        return masks.ones(trunk)
    top = network([FEATURES, 2], generator)
    full = nn.Sequential(*trunk, *top)
    full.input_shape = trunk.input_shape
    batch = data.balanced_batch(data.Split(part.x, part.y.long(), 2), SCORED, generator)
    scores = metrics.snip(full, masks.ones(full), batch)
    return masks.keep_top({name: scores[name] for name in prunable(trunk)}, density)


class Model(nn.Module):
    """A trunk that gives features and a head that gives the latent function there."""

    def __init__(self, trunk: nn.Module, head: nn.Module, likelihood: nn.Module):
        super().__init__()
        self.trunk, self.head, self.likelihood = trunk, head, likelihood

    def measured(self, part: Part, binary: bool) -> dict:
        """``log_likelihood`` (nats an answer); ``error``, the share of wrong answers or the root
        mean square in deviations of the training answers; of classes ``calibration_error``."""
        self.eval()
        with torch.no_grad():
            latent = self.head(self.trunk(part.x))
            likelihood = float(self.likelihood.log_marginal(part.y, latent).mean())
            if not binary:
                error = float((latent.mean - part.y).square().mean().sqrt())
                return {"log_likelihood": likelihood, "error": error, "calibration_error": None}
            p = self.likelihood(latent).probs
        both, labels = torch.stack([1 - p, p], 1), part.y.long()
        return {
            "log_likelihood": likelihood,
            "error": float((both.argmax(1) != labels).double().mean()),
            "calibration_error": calibration.calibration_error(both, labels),
        }


def build(run: GaussianProcess, problem: Problem, generator: torch.Generator):
    """(model, mask): the inducing points are features of random training inputs, their values the
    labels (-1 and 1 of classes), and the kernel's length is the median distance of these features.

    Raises:
        UserError: GPyTorch is not installed, or there are fewer training inputs than points.
    """
    try:
        with warnings.catch_warnings():
            # GPyTorch compiles a function in a way that PyTorch is about to give up.
            warnings.simplefilter("ignore", FutureWarning)
            from gpytorch.likelihoods import BernoulliLikelihood, GaussianLikelihood

            from ..methods import gaussian_process as heads
    except ModuleNotFoundError as error:
        raise UserError(f"runs of the kind {run.kind} need the package {error.name}") from error
    x, y = problem.train
    if run.points > len(y):
        raise UserError(f"points are {run.points}; {run.task} has {len(y)} training inputs")
    trunk, mask = nn.Sequential(), {}
    if run.model != "svgp":
        trunk = network([x.shape[1], run.width, run.width, FEATURES], generator)
        mask = snip(trunk, problem.train, run.density, generator)
        with torch.no_grad():
            for name, weight in prunable(trunk).items():
                weight.mul_(mask[name])
        trunk.append(nn.BatchNorm1d(FEATURES, affine=False, dtype=torch.double))
    with torch.no_grad():
        rows = torch.randperm(len(y), generator=generator)[: run.points]
        z, values = trunk(x)[rows], 2 * y[rows] - 1 if problem.binary else y[rows]
    length = heads.median_distance(z)
    if run.model == "network":
        head = heads.Linear(FEATURES, generator)
    elif run.model == "ign":
        head = heads.Inducing(z, values, length)
    else:
        head = heads.Variational(z, length, each=run.model == "svgp")
    likelihood = BernoulliLikelihood() if problem.binary else GaussianLikelihood()
    if not problem.binary:
        likelihood.noise = 1.0
    return Model(trunk, head, likelihood).double(), mask


def execute(run: GaussianProcess) -> dict:
    """Train and measure.

    Returns:
        ``test_log_likelihood``, ``test_error``, ``test_calibration_error`` (None of numbers), the
        same of ``validation_``, all at the epoch (``best_epoch``, from 1) whose likelihood on the
        validation part was best; ``constant_log_likelihood`` on the test part of an answer that
        does not look at the input; ``weights`` kept of the network; ``curve``, the likelihood on
        the validation part after each epoch; ``train_seconds``.
    """
    generator = torch.Generator().manual_seed(run.seed)
    problem = TASKS[run.task](generator)
    model, mask = build(run, problem, generator)
    start, curve, best = time.perf_counter(), [], {}
    optimiser = torch.optim.Adam(model.parameters(), run.lr)
    gone = [(weight, ~mask[name]) for name, weight in _masked(model, mask).items()]
    for _ in range(run.epochs):
        _epoch(model, problem.train, run.batch, optimiser, gone, generator)
        curve.append(model.measured(problem.validation, problem.binary)["log_likelihood"])
        if curve[-1] == max(curve):
            best = copy.deepcopy(model.state_dict())
    seconds = time.perf_counter() - start
    model.load_state_dict(best)
    found = {}
    for name in ("test", "validation"):
        values = model.measured(getattr(problem, name), problem.binary)
        found |= {f"{name}_{key}": _short(value) for key, value in values.items()}
    return {
        **found,
        "best_epoch": curve.index(max(curve)) + 1,
        "constant_log_likelihood": _short(constant(problem)),
        "weights": masks.count(mask),
        "curve": [_short(value) for value in curve],
        "train_seconds": round(seconds, 2),
    }


def _masked(model: Model, mask: masks.Mask) -> dict[str, Tensor]:
    return {name: model.trunk.get_parameter(name) for name in mask}


def _epoch(model: Model, part: Part, size: int, optimiser, gone: list, generator) -> None:
    """One pass in a new order; what is pruned gets no gradient and stays 0."""
    model.train()
    for rows in torch.randperm(len(part.y), generator=generator).split(size):
        if len(rows) < 2:
            # One row has no deviation to standardise by.
            continue
        optimiser.zero_grad()
        features = model.trunk(part.x[rows])
        model.head.loss(features, part.y[rows], model.likelihood, len(part.y)).backward()
        for weight, removed in gone:
            weight.grad.masked_fill_(removed, 0.0)
        optimiser.step()


def constant(problem: Problem) -> float:
    """Mean log likelihood of the test answers under the training answers' mean and deviation, or
    under the share of each class."""
    seen, y = problem.train.y, problem.test.y
    if problem.binary:
        return -float(nn.functional.binary_cross_entropy(seen.mean().expand(len(y)), y))
    return float(torch.distributions.Normal(seen.mean(), seen.std()).log_prob(y).mean())


def _short(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")
