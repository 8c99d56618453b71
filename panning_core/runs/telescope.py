"""How well do first-order steps tell a training, and how many effective parameters has what they
tell, of dense networks and of pruned ones (Jeffares, Curth & van der Schaar 2024)?

The task (digits 3 against 5, a fifth of the labels wrong) is one of the paper's; its widths, rates
and numbers of points could not be read, and those here are ours. So is the question of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import data, masks, pruning
from ..errors import UserError, fraction, fraction_kept, is_number, pick, unknown, whole
from ..methods.telescope import ACTIVATIONS, Network, Path, Points, as_module
from . import base

CLASSES = (3, 5)  #: the labels -1 and +1
SIDE = 8  #: images are pooled to at most so many pixels a side
TESTED = 200  #: test points, at most
LEVELS = (0.6, 0.3, 0.1, 0.03)  #: of the training error, at which networks are compared
DENSE = "dense"  #: the method that prunes nothing


@dataclass(frozen=True)
class Telescope(base.Run):
    """One training by gradient descent, and its telescoping, lazy and smoother models.

    Attributes:
        seed: of the points, the wrong labels, the initial weights and the mask.
        dataset: images with the classes 3 and 5.
        points: n, training points.
        noise: share of training labels that are turned over.
        width: hidden units.
        activation: a key of ``ACTIVATIONS``.
        steps: at most; each on all points.
        until: training error, mean squared, at which it ends before.
        rate: of a step, in units of n / trace K, thus below 2 / the largest eigenvalue of K / n at
            every step, beyond which gradient descent diverges.
        method: ``"dense"``, or a name of ``pruning.methods()`` for the mask.
        density: share of weights kept.
        shuffled: control, the mask has as many weights in each layer, at random places.
    """

    kind: ClassVar[str] = "telescope"
    seed: int = 0
    dataset: str = "mnist"
    points: int = 100
    noise: float = 0.2
    width: int = 64
    activation: str = "silu"
    steps: int = 10_000
    until: float = 0.0
    rate: float = 1.0
    method: str = DENSE
    density: float = 1.0
    shuffled: bool = False

    def __post_init__(self):
        for name, least in (("seed", 0), ("points", 2), ("width", 1), ("steps", 1)):
            whole(f"{name} of a telescope", getattr(self, name), least)
        fraction("noise of a telescope", self.noise)
        fraction_kept(self.density)
        if not is_number(self.until) or self.until < 0:
            raise UserError(f"until of a telescope is {self.until!r}; it must be a number from 0")
        pick("activation", self.activation, ACTIVATIONS)
        if not is_number(self.rate) or not 0 < self.rate < 2:
            raise UserError(f"rate of a telescope is {self.rate!r}; it must be between 0 and 2")
        if self.method not in (DENSE, *pruning.methods()):
            raise unknown("pruner", self.method, (DENSE, *pruning.methods()))
        if (self.method == DENSE) != (self.density == 1):
            raise UserError(
                f"method {self.method} with density {self.density}; the method dense, and it "
                "alone, has density 1"
            )
        if not isinstance(self.shuffled, bool) or self.shuffled and self.method == DENSE:
            raise UserError(
                f"shuffled of a telescope is {self.shuffled!r}; it must be true or false, and "
                "false without a mask"
            )

    def execute(self, context: base.Context) -> dict:
        return run(self)


# --- the task and its network ---------------------------------------------------------------------


def draw_points(splits: data.Splits, n: int, noise: float, generator: torch.Generator) -> Points:
    """``n`` training and at most ``TESTED`` test images of the two classes, pooled; training pixels
    have mean 0 each and variance 1 together.

    Raises:
        UserError: fewer images than asked for.
    """
    x, y = _of_classes(splits.train, n, generator)
    if len(y) < n:
        raise UserError(f"{splits.title} has {len(y)} training images of {CLASSES}; {n} are wanted")
    x_test, y_test = _of_classes(splits.test, TESTED, generator)
    turned = torch.randperm(n, generator=generator)[: round(noise * n)]
    y[turned] *= -1
    mean, deviation = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
    return Points((x - mean) / deviation, y, (x_test - mean) / deviation, y_test)


def _of_classes(split: data.Split, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x [n, pixels], y [n]) in float64, at random, fewer where there are no more."""
    if split.classes <= max(CLASSES) or split.x.dim() != 4:
        raise UserError(f"a telescope needs images of the classes {CLASSES[0]} and {CLASSES[1]}")
    members = ((split.y == CLASSES[0]) | (split.y == CLASSES[1])).nonzero().flatten()
    chosen = members[torch.randperm(len(members), generator=generator)[:n]]
    side = math.ceil(max(split.x.shape[2:]) / SIDE)
    x = nn.functional.avg_pool2d(split.x[chosen].double(), side).flatten(1)
    return x, torch.where(split.y[chosen] == CLASSES[1], 1.0, -1.0).double()


def build(points: Points, run: Telescope, generator: torch.Generator) -> Network:
    """The initial network, W ~ N(0, 2 / pixels) and a ~ N(0, 1 / units), pruned.

    A mask is found as for any network of two classes: the logits are 0 and f, so that
    cross-entropy is the logistic loss of f, and the batch is all training points.
    """
    pixels = points.x.shape[1]
    w = torch.randn((run.width, pixels), generator=generator).double() * (2 / pixels) ** 0.5
    a = torch.randn(run.width, generator=generator).double() / run.width**0.5
    if run.method == DENSE:
        kept = torch.ones_like(w, dtype=torch.bool), torch.ones_like(a, dtype=torch.bool)
        return Network(w, a, *kept, run.activation)
    model = as_module(w, a, run.activation)
    batch = points.x.float(), (points.y > 0).long()
    mask, _ = pruning.prune(model, run.method, run.density, batch, seed=run.seed)
    first, last = (masks.shuffle(mask, run.seed) if run.shuffled else mask).values()
    return Network(w * first, a * last[0], first, last[0], run.activation)


# --- the training ---------------------------------------------------------------------------------


def run(telescope: Telescope) -> dict:
    """Train, and look at the three models on the way.

    Returns:
        ``step`` at the end and what ``Path.look`` says there; ``curve``, the same on the way, a
        list for each; ``at``, the same where the training error first fell to each of ``LEVELS``,
        by level as text, without those it never reached; ``kept_weights``, ``units`` that are left
        with weights on both sides, ``points_test``.

    Raises:
        UserError: the training diverged.
    """
    generator = torch.Generator().manual_seed(telescope.seed)
    splits = data.load(telescope.dataset)
    points = draw_points(splits, telescope.points, telescope.noise, generator)
    path = Path(build(points, telescope, generator), points, telescope.rate)
    curve, at = [], {}
    for step in range(telescope.steps + 1):
        error = path.train_mse()
        if not math.isfinite(error):
            raise UserError(f"the training diverged at step {step}; a smaller rate may not")
        passed = [str(level) for level in LEVELS if error <= level and str(level) not in at]
        ends = step == telescope.steps or error <= telescope.until
        if passed or ends or _is_shown(step):
            curve.append(rounded({"step": step, **path.look()}))
            at |= dict.fromkeys(passed, curve[-1])
        if ends:
            break
        path.step()
    network = path.network
    return {
        **curve[-1],
        "curve": _columns(curve),
        "at": at,
        "kept_weights": masks.count({"w": network.first, "a": network.last}),
        "units": int((network.first.any(1) & network.last).sum()),
        "points_test": len(points.y_test),
    }


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _is_shown(step: int) -> bool:
    """Whether the curve has this step: five in a doubling."""
    return step == 0 or math.floor(5 * math.log2(step)) < math.floor(5 * math.log2(step + 1))


def rounded(record: Mapping[str, float]) -> dict[str, float]:
    """Six significant digits."""
    return {name: float(f"{value:.6g}") for name, value in record.items()}
