"""A diffusion model of the checkpoints of tiny networks, prompted by a loss (G.pt, Peebles et al.
2022).

Many trainings of one small network are recorded. From two checkpoints of one training, theta with
loss L and a later theta* with loss L*, the model learns to draw theta* given theta, L and L*. From
a new network it is then asked in one update for any loss.

As published: one number scales all parameters, sinusoidal embeddings of the losses and of the
diffusion step, x_0 is what is predicted, as theta plus a decoder that starts at 0, linear betas,
AdamW with warm-up and cosine, an average of the weights for sampling. Ours, because the published
scale is 10^3 times what can be spent here: a token is a *hidden unit* with the weights on both
sides of it, so that exchanging hidden units commutes with the model and no augmentation is needed;
theta* and theta share a token; the conditions are added to every token; and sampling takes 50 steps
of DDIM (Song et al. 2021) instead of 1,000 ancestral ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import masks

DIFFUSION = 1000  #: diffusion steps
#: share of the signal's variance that is left after each of them; beta is linear, 1e-4 to 0.02
LEFT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, DIFFUSION, dtype=torch.double), 0).float()
DEVIATION = 0.538  #: of all scaled parameters (the authors' code)
MOMENTUM = 0.9  #: Nesterov's, of the trainings
FREQUENCIES = 16  #: of a sinusoidal embedding, from 1 to 2^8: finer ones are noise on a small set


# --- tiny networks, many at once ------------------------------------------------------------------


class Shape(NamedTuple):
    """A network inputs - hidden - classes with ReLU. Its parameters are one vector: for each hidden
    unit the weights into it, its bias and the weights out of it, then the biases of the classes.
    """

    inputs: int
    hidden: int
    classes: int

    @property
    def unit(self) -> int:
        """Parameters of a hidden unit."""
        return self.inputs + 1 + self.classes

    @property
    def size(self) -> int:
        return self.hidden * self.unit + self.classes

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """[..., size] as units [..., hidden, unit] and biases [..., classes]."""
        units, biases = theta.split([self.hidden * self.unit, self.classes], -1)
        return units.unflatten(-1, (self.hidden, self.unit)), biases

    def weights(self) -> Tensor:
        """[size]: True for a weight, False for a bias."""
        unit = torch.ones(self.unit, dtype=torch.bool)
        unit[self.inputs] = False
        return torch.cat([unit.repeat(self.hidden), torch.zeros(self.classes, dtype=torch.bool)])


def join(units: Tensor, biases: Tensor) -> Tensor:
    """What ``Shape.split`` has split."""
    return torch.cat([units.flatten(-2), biases], -1)


def logits(shape: Shape, theta: Tensor, x: Tensor) -> Tensor:
    """[networks, n, classes] of networks [networks, size] for inputs [n, inputs], or [networks, n,
    inputs]."""
    units, biases = shape.split(theta)
    into, own, out = units.split([shape.inputs, 1, shape.classes], -1)
    return (x @ into.mT + own.mT).relu() @ out + biases[:, None]


def losses(shape: Shape, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[networks]: cross-entropy of each, labels [n] or [networks, n]."""
    log = logits(shape, theta, x).log_softmax(-1)
    return -log.gather(-1, y.expand(log.shape[:-1])[..., None]).mean((1, 2))


def initial(shape: Shape, networks: int, generator: torch.Generator) -> Tensor:
    """[networks, size]: PyTorch's own, uniform within 1 / sqrt(fan-in), biases alike."""
    uniform = 2 * torch.rand((networks, shape.size), generator=generator) - 1
    units, biases = shape.split(uniform)
    into, out = units.split([shape.inputs + 1, shape.classes], -1)
    fans = shape.inputs**-0.5, shape.hidden**-0.5
    return join(torch.cat([into * fans[0], out * fans[1]], -1), biases * fans[1])


def snip_masks(shape: Shape, theta: Tensor, x: Tensor, y: Tensor, density: float) -> Tensor:
    """[networks, size]: the weights of each with the largest |theta g| (Lee et al. 2019), and all
    biases."""
    theta, weights = theta.detach().requires_grad_(), shape.weights()
    (gradient,) = torch.autograd.grad(losses(shape, theta, x, y).sum(), theta)
    kept = torch.ones_like(theta, dtype=torch.bool)
    for row, scores in zip(kept, (theta * gradient).abs().detach()):
        row[weights] = masks.keep_top({"weights": scores[weights]}, density)["weights"]
    return kept


class Task(NamedTuple):
    """Inputs [n, inputs] and labels [n] of a part of a data set."""

    x: Tensor
    y: Tensor


def train(
    shape: Shape,
    theta: Tensor,
    kept: Tensor,
    task: Task,
    steps: int,
    at: Sequence[int],
    generator: torch.Generator,
    lr: float,
    batch: int = 32,
) -> Tensor:
    """[networks, len(at), size]: the networks after these of ``steps`` steps of SGD, each with its
    own batches; what is not ``kept`` is 0 throughout."""
    theta = (theta * kept).requires_grad_()
    velocity, seen, at = torch.zeros_like(theta), [], set(at)
    for step in range(steps + 1):
        if step in at:
            seen.append(theta.detach().clone())
        if step == steps:
            break
        chosen = torch.randint(len(task.y), (len(theta), batch), generator=generator)
        loss = losses(shape, theta, task.x[chosen], task.y[chosen]).sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            gradient *= kept
            velocity.mul_(MOMENTUM).add_(gradient)
            theta -= lr * (gradient + MOMENTUM * velocity)
    return torch.stack(seen, 1)


# --- the denoiser ---------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """theta* from a noised theta*, theta, the diffusion step and both losses: a transformer whose
    tokens are the hidden units and the biases of the classes. At first it returns theta.

    Args:
        width: of a token, a multiple of 4.
        depth: blocks.
    """

    def __init__(self, shape: Shape, width: int, depth: int):
        super().__init__()
        self.shape = shape
        self.unit_in, self.unit_out = nn.Linear(2 * shape.unit, width), nn.Linear(width, shape.unit)
        self.bias_in = nn.Linear(2 * shape.classes, width)
        self.bias_out = nn.Linear(width, shape.classes)
        conditions = 4 * (2 * FREQUENCIES + 1)
        self.condition = nn.Sequential(
            nn.Linear(conditions, width), nn.GELU(), nn.Linear(width, width)
        )
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        for decoder in (self.unit_out, self.bias_out):
            nn.init.zeros_(decoder.weight)
            nn.init.zeros_(decoder.bias)

    def forward(
        self, noised: Tensor, theta: Tensor, step: Tensor, loss: Tensor, wanted: Tensor
    ) -> Tensor:
        """[networks, size] of two such and three vectors [networks]."""
        pairs = zip(self.shape.split(noised), self.shape.split(theta))
        units, biases = (torch.cat(pair, -1) for pair in pairs)
        scalars = torch.stack([step / DIFFUSION, loss, wanted, wanted - loss], 1)
        tokens = torch.cat([self.unit_in(units), self.bias_in(biases)[:, None]], 1)
        tokens = self.blocks(tokens + self.condition(embedding(scalars))[:, None])
        return theta + join(self.unit_out(tokens[:, :-1]), self.bias_out(tokens[:, -1]))


def embedding(scalars: Tensor) -> Tensor:
    """[n, scalars * 33]: sin and cos of 2^k s for k from 0 to 8, and s."""
    phases = scalars[..., None] * 2.0 ** torch.linspace(0, 8, FREQUENCIES)
    return torch.cat([phases.sin(), phases.cos(), scalars[..., None]], -1).flatten(1)


def noised(theta: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """theta after so many diffusion steps, counted from 0."""
    left = LEFT[step][:, None]
    return left.sqrt() * theta + (1 - left).sqrt() * noise


def fit(
    model: Denoiser,
    checkpoints: Tensor,
    loss: Tensor,
    steps: int,
    generator: torch.Generator,
    lr: float = 2e-3,
    batch: int = 128,
) -> tuple[Denoiser, list[float]]:
    """Train ``model`` in place on scaled checkpoints [networks, times, size] with losses [networks,
    times].

    A pair is a training, a distance uniform on 1 to times - 1, and a start uniform on what is left.

    Returns:
        The running average of the model, for sampling, and the mean squared error in each tenth of
        the training.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1, (s + 1) / warm) * (1 + math.cos(math.pi * s / steps)) / 2
    )
    average = copy.deepcopy(model).requires_grad_(False)
    errors = torch.zeros(steps)
    for step in range(steps):
        run, start, end = pairs(*loss.shape, batch, generator)
        at = torch.randint(DIFFUSION, (batch,), generator=generator)
        target = checkpoints[run, end]
        noise = torch.randn(target.shape, generator=generator)
        found = model(
            noised(target, at, noise), checkpoints[run, start], at, loss[run, start], loss[run, end]
        )
        error = (found - target).square().mean()
        optimiser.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.75)
        optimiser.step()
        schedule.step()
        errors[step] = error.detach()
        # Over the last fifteenth of the training; less far back where it has just begun.
        share = max(15 / steps, 9 / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters()):
                mean.lerp_(value, min(share, 1.0))
    return average, [float(part.mean()) for part in errors.tensor_split(min(10, steps))]


def pairs(
    networks: int, times: int, batch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Which training, the place of its earlier checkpoint, and of its later one; [batch] each."""
    run = torch.randint(networks, (batch,), generator=generator)
    apart = torch.randint(1, times, (batch,), generator=generator)
    start = (torch.rand(batch, generator=generator) * (times - apart)).long()
    return run, start, start + apart


@torch.no_grad()
def sample(
    model: Denoiser,
    theta: Tensor,
    loss: Tensor,
    wanted: Tensor,
    generator: torch.Generator,
    steps: int = 50,
) -> Tensor:
    """[networks, size]: one update of scaled networks ``theta`` whose loss is ``loss`` to the loss
    ``wanted``, by DDIM without noise."""
    x = torch.randn(theta.shape, generator=generator)
    places = torch.linspace(DIFFUSION - 1, 0, steps).round().long()
    for at, after in zip(places, [*places[1:], None]):
        found = model(x, theta, at.expand(len(theta)), loss, wanted)
        if after is None:
            return found
        noise = (x - LEFT[at].sqrt() * found) / (1 - LEFT[at]).sqrt()
        x = noised(found, after.expand(len(theta)), noise)


def alignment(desired: Tensor, observed: Tensor) -> Tensor:
    """[networks]: R^2 of observed losses [networks, prompts] as predictions of the desired ones; 1
    follows every prompt, 0 or less none."""
    missed = (desired - observed).square().sum(1)
    return 1 - missed / (desired - desired.mean(1, keepdim=True)).square().sum(1)
