"""G.pt on a tiny network (Peebles et al. 2022): does one sampled update reach the loss that it was
asked for, and does a model of sparse checkpoints keep the zeros?

The published model learned from 10,728 trainings of an MLP with 7,960 parameters on MNIST. Here it
is some hundred trainings of an MLP 10-6-10 with 136 parameters on digits, of which the 10 largest
principal components are the inputs. Losses are those of validation images, prompts too; the test
images are for reporting only (in the authors' code the test set is all three). The trainings are
made by the run itself and are gone with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import data
from ..errors import UserError, is_number, whole
from ..methods import checkpoint_diffusion as diffusion
from ..methods.checkpoint_diffusion import Denoiser, Shape, Task
from . import base

INPUTS, HIDDEN = 10, 6  #: principal components, units
STEPS, RATE = 300, 0.02  #: of the trainings
STARTS, PROMPTS = 32, 12  #: unseen networks, and what each is asked for
HIGHEST = 0.9  #: of a network's own loss, the highest prompt
PRUNED = 0.5  #: density of pruned starts where the model has seen dense networks only
ZERO = 1e-3  #: of the deviation of all parameters: below it a value counts as 0


@dataclass(frozen=True)
class CheckpointDiffusion(base.Run):
    """One collection of trainings, one model of it, and its updates of new networks.

    Attributes:
        seed: of everything.
        networks: trainings in the collection.
        checkpoints: of each training, the first and the last among them.
        density: share of weights kept in each network of the collection, by SNIP before training.
        iterations: steps of the diffusion model's training.
        width, depth: of its transformer.
    """

    kind: ClassVar[str] = "checkpoint-diffusion"
    seed: int = 0
    networks: int = 800
    checkpoints: int = 30
    density: float = 1.0
    iterations: int = 2000
    width: int = 48
    depth: int = 2

    def __post_init__(self):
        least = {
            "seed": 0,
            "networks": 2,
            "checkpoints": 2,
            "iterations": 1,
            "width": 4,
            "depth": 1,
        }
        for name, smallest in least.items():
            whole(f"{name} of a checkpoint-diffusion", getattr(self, name), smallest)
        if self.checkpoints > STEPS + 1:
            raise UserError(
                f"checkpoints of a checkpoint-diffusion is {self.checkpoints}; a training has "
                f"{STEPS} steps"
            )
        if self.width % 4:
            raise UserError(
                f"width of a checkpoint-diffusion is {self.width}; it must be a multiple of 4"
            )
        if not is_number(self.density) or not 0 < self.density <= 1:
            raise UserError(
                f"density of a checkpoint-diffusion is {self.density!r}; it must be above 0 and "
                "at most 1"
            )

    def reads(self) -> tuple[str, ...]:
        return ("digits",)

    def execute(self, context: base.Context) -> dict:
        return run(self)


class Tasks(NamedTuple):
    train: Task
    validation: Task
    test: Task


def tasks() -> Tasks:
    """Digits as the ``INPUTS`` largest principal components of the training images, variance 1."""
    splits = data.load("digits")
    rows = splits.train.x.flatten(1)
    mean = rows.mean(0)
    axes = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:INPUTS].T
    deviation = ((rows - mean) @ axes).std(0)
    parts = (splits.train, splits.validation, splits.test)
    return Tasks(*(Task((p.x.flatten(1) - mean) @ axes / deviation, p.y) for p in parts))


class Collection(NamedTuple):
    """Trainings: ``theta`` [networks, times, size], their ``loss`` [networks, times] on the
    validation images, and the number all parameters are multiplied by for the model."""

    theta: Tensor
    loss: Tensor
    scale: float


def starts(
    shape: Shape, networks: int, density: float, task: Task, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """New networks [networks, size], pruned, and what of them is kept."""
    theta = diffusion.initial(shape, networks, generator)
    kept = torch.ones_like(theta, dtype=torch.bool)
    if density < 1:
        kept = diffusion.snip_masks(shape, theta, *task, density)
    return theta * kept, kept


def collect(
    shape: Shape, settings: CheckpointDiffusion, task: Tasks, generator: torch.Generator
) -> Collection:
    """Train the networks; checkpoints are the first, the last, and others at random steps."""
    theta, kept = starts(shape, settings.networks, settings.density, task.train, generator)
    between = torch.randperm(STEPS - 1, generator=generator)[: settings.checkpoints - 2] + 1
    at = [0, *between.tolist(), STEPS]
    seen = diffusion.train(shape, theta, kept, task.train, STEPS, at, generator, RATE)
    loss = torch.stack([diffusion.losses(shape, t, *task.validation) for t in seen.unbind(1)], 1)
    return Collection(seen, loss, diffusion.DEVIATION / float(seen.std()))


def prompts(loss: Tensor, lowest: float) -> Tensor:
    """[networks, PROMPTS]: evenly from ``lowest`` to ``HIGHEST`` of each network's own loss."""
    highest = HIGHEST * loss[:, None]
    return lowest + (highest - lowest) * torch.linspace(0, 1, PROMPTS)


def updated(model: Denoiser, theta: Tensor, loss: Tensor, desired: Tensor, scale: float,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """[networks, PROMPTS, size]: one update of each network for each prompt."""
    networks, each = desired.shape
    repeated = (theta * scale).repeat_interleave(each, 0)
    found = diffusion.sample(
        model, repeated, loss.repeat_interleave(each), desired.flatten(), generator
    )
    return found.view(networks, each, -1) / scale


def nearest(collection: Collection, theta: Tensor, desired: Tensor) -> Tensor:
    """[networks, PROMPTS, size]: control without a model. Each start plus what the training whose
    start is nearest had changed when its loss was nearest to the prompt."""
    run = torch.cdist(theta, collection.theta[:, 0]).argmin(1)
    apart = (collection.loss[run][:, None] - desired[:, :, None]).abs().argmin(2)
    return theta[:, None] + collection.theta[run[:, None], apart] - collection.theta[run, :1]


def measured(shape: Shape, found: Tensor, desired: Tensor, task: Task) -> tuple[Tensor, float]:
    """Losses [networks, PROMPTS] of updated networks, and their alignment, the mean over them."""
    observed = torch.stack([diffusion.losses(shape, f, *task) for f in found.unbind(1)], 1)
    return observed, float(diffusion.alignment(desired, observed).mean())


def judge(
    model: Denoiser,
    shape: Shape,
    collection: Collection,
    density: float,
    task: Tasks,
    generator: torch.Generator,
) -> dict:
    """One update of new networks of this density for each prompt, beside SGD and the controls."""
    theta, kept = starts(shape, STARTS, density, task.train, generator)
    loss = diffusion.losses(shape, theta, *task.validation)
    desired = prompts(loss, float(collection.loss[:, -1].mean()))
    found = updated(model, theta, loss, desired, collection.scale, generator)
    masked, copied = found * kept[:, None], nearest(collection, theta, desired) * kept[:, None]
    observed, followed = measured(shape, found, desired, task.validation)
    observed_masked, followed_masked = measured(shape, masked, desired, task.validation)
    means = observed_masked.mean(0)
    chosen = diffusion.logits(shape, masked[:, means.argmin()], task.test.x)
    return {
        "start_loss": float(loss.mean()),
        "desired": desired.mean(0).tolist(),
        "observed": observed.mean(0).tolist(),
        "observed_masked": means.tolist(),
        "alignment": followed,
        "alignment_masked": followed_masked,
        "alignment_test": measured(shape, masked, desired, task.test)[1],
        "alignment_nearest": measured(shape, copied, desired, task.validation)[1],
        "best_loss": float(means.min()),
        "test_accuracy": float((chosen.argmax(-1) == task.test.y).double().mean()),
        **by_sgd(shape, theta, kept, float(means.min()), task, generator),
        **among_pruned(found, kept, collection.scale),
        **without_model(shape, collection, theta, kept, task.validation),
    }


def by_sgd(
    shape: Shape,
    theta: Tensor,
    kept: Tensor,
    loss: float,
    task: Tasks,
    generator: torch.Generator,
) -> dict:
    """The mean loss of the same networks in a training, and how many steps of it reach ``loss``."""
    path = diffusion.train(shape, theta, kept, task.train, STEPS, range(STEPS + 1), generator, RATE)
    means = torch.stack(
        [diffusion.losses(shape, t, *task.validation).mean() for t in path.unbind(1)]
    )
    reached = (means <= loss).nonzero().flatten()
    return {
        "sgd": means[:: STEPS // 30].tolist(),
        "sgd_steps": int(reached[0]) if len(reached) else STEPS,
    }


def among_pruned(found: Tensor, kept: Tensor, scale: float) -> dict:
    """What an update does to pruned weights: the share that it leaves at 0, and their deviation
    over that of all parameters."""
    pruned = found[~kept[:, None].expand_as(found)]
    if not len(pruned):
        return {"zeros": 1.0, "pruned_deviation": 0.0}
    small = pruned.abs() * scale < ZERO * diffusion.DEVIATION
    return {
        "zeros": float(small.double().mean()),
        "pruned_deviation": float(pruned.std() / found.std()),
    }


def without_model(
    shape: Shape, collection: Collection, theta: Tensor, kept: Tensor, task: Task
) -> dict:
    """Losses of controls: what trainings change on average, and where they end on average."""
    first, last = collection.theta[:, 0], collection.theta[:, -1]
    controls = {
        "mean_update_loss": (theta + (last - first).mean(0)) * kept,
        "mean_network_loss": last.mean(0) * kept,
    }
    return {
        name: float(diffusion.losses(shape, networks, *task).mean())
        for name, networks in controls.items()
    }


def run(settings: CheckpointDiffusion) -> dict:
    """Collect, learn, and update dense and pruned networks that the model has not seen.

    Returns:
        For starts of each sort, with the prefix ``dense_`` and ``pruned_``: ``start_loss``;
        ``desired`` losses, the means over the networks of what was ``observed``, and of that with
        the mask on it (``observed_masked``); ``alignment`` of both, with the mask on the test
        images too, and of the control without a model (``alignment_nearest``); of the best prompt
        ``best_loss``, ``test_accuracy``, and how many ``sgd_steps`` reach that loss; the losses
        ``sgd`` has at every tenth step; ``zeros``, the share of pruned weights that the update
        leaves below ``ZERO`` deviations, and the deviation of all of them over that of all
        parameters; losses of the control updates. Beside them ``last_loss`` of the collection,
        ``parameters`` and ``errors`` of the diffusion model.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    task = tasks()
    shape = Shape(INPUTS, HIDDEN, int(task.train.y.max()) + 1)
    collection = collect(shape, settings, task, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Denoiser(shape, settings.width, settings.depth)
    scaled = collection.theta * collection.scale
    average, errors = diffusion.fit(model, scaled, collection.loss, settings.iterations, generator)
    found = {
        "last_loss": float(collection.loss[:, -1].mean()),
        "parameters": sum(p.numel() for p in average.parameters()),
        "errors": errors,
    }
    densities = {"dense": 1.0, "pruned": settings.density if settings.density < 1 else PRUNED}
    for name, density in densities.items():
        judged = judge(average, shape, collection, density, task, generator)
        found |= {f"{name}_{key}": value for key, value in judged.items()}
    return {name: rounded(value) for name, value in found.items()}


def rounded(value: float | int | list[float]) -> float | int | list[float]:
    """Six significant digits."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
