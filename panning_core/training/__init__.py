"""Train one masked network. A pruned weight and its momentum are exactly 0 after every step."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import compaction, data, masks, sparse
from ..data import Split, Splits
from ..errors import UserError, is_number, pick, shown, unknown, whole
from ..inspection import faithful, noise
from ..masks import Mask
from ..models import check_batch, prunable
from ..plugins import Table

#: learning-rate factor at step t of ``steps``
DECAYS: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda t, steps: 0.5 * (1 + math.cos(math.pi * t / steps)),
    "steps": lambda t, steps: (
        0.1 ** ((t >= steps * 3 // 8) + (t >= steps * 3 // 4))
    ),  # at epochs 60 and 120 of 160
    "one-cycle": lambda t, steps: min(
        (t + 1) / (0.3 * steps), (steps - t) / (0.7 * steps)
    ),  # Smith 2018: up for three tenths, then down
}
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum on the mean cross-entropy.

    Attributes:
        epochs, batch_size: passes over the training split, images a step (the last step of an epoch takes what is left).
        lr, momentum, weight_decay, nesterov: as in ``torch.optim.SGD``; BatchNorm and biases decay too, as in the papers' code.
        decay: ``"cosine"`` to 0; ``"steps"``, a tenth after 3/8 and after 3/4 of the steps; or ``"one-cycle"``, in a line up to ``lr`` and down to 0.
        warm_up: epochs in which the rate rises in a line to what ``decay`` asks for.
        augment: random crop (4 pixels) and flip.
        precision: ``"fp32"``, or ``"bf16"`` for autocast: weights stay float32, products are of bfloat16 numbers.
        seed: of the order of the images and of the augmentation.
    """

    epochs: int = 80
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    decay: str = "cosine"
    augment: bool = False
    precision: str = "fp32"
    seed: int = 0
    warm_up: int = 0

    def __post_init__(self):
        pick("decay", self.decay, DECAYS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for name in ("epochs", "batch_size"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed)
        if whole("warm_up", self.warm_up) > self.epochs:
            raise UserError(
                f"warm_up is {self.warm_up} of {self.epochs} epochs; it must end with the training at the latest"
            )
        for name in ("lr", "momentum", "weight_decay"):
            if not is_number(value := getattr(self, name)) or value < 0:
                raise UserError(f"{name} is {value!r}; it must be a number of at least 0")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs a momentum above 0")


#: Published recipes (Kang et al. 2022's code; Tanaka et al. 2020, figure 6), and a short one for processors; its rate and batch are the best
#: of a few on the validation images, with SNIP's and SynFlow's masks of ResNet-20 at 98 %, seed 0. A study says how it departs from a recipe.
RECIPES = Table(
    __name__ + ".RECIPES",
    {
        "mnist": Recipe(),
        "mnist-warm-up": Recipe(warm_up=5),
        "fashion-mnist": Recipe(augment=True),
        "cifar": Recipe(epochs=180, batch_size=128, weight_decay=5e-4, augment=True),
        "synflow-cifar": Recipe(
            epochs=160, batch_size=128, nesterov=True, decay="steps", augment=True
        ),
        "cifar-short": Recipe(
            epochs=1, batch_size=64, lr=0.4, weight_decay=5e-4, nesterov=True, decay="one-cycle"
        ),
    },
)


class Dense:
    """The reference engine: PyTorch's modules and optimiser on the whole weight tensors."""

    name, count, seconds = "dense", 1, (0.0,)  # networks, and what each took by itself

    def __init__(self, model: nn.Module, mask: Mask, recipe: Recipe):
        self.model, self.mask, self.recipe = model, mask, recipe
        self._lay_out(torch.channels_last)  # the layout in which convolutions are fastest
        weights = prunable(model)
        self.pruned = [(weights[name], ~m) for name, m in mask.items() if not m.all()]
        with torch.no_grad():
            for weight, gone in self.pruned:
                weight[gone] = 0.0
        self.like = next(model.parameters())
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(
            learning,
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )

    def _lay_out(self, layout: torch.memory_format) -> None:
        for parameter in self.model.parameters():
            if parameter.dim() == 4:  # the layouts of others have other names
                parameter.data = parameter.data.to(memory_format=layout)

    def images(self, x: Tensor) -> Tensor:
        """What ``step`` and ``logits`` want of the images [n, channels, height, width] of a data set."""
        return x

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            self.like.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
        ):
            return self.model(x).to(self.like.dtype)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._forward(x), y)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        self.model.train()
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(x, y)
        loss.sum().backward()
        # A pruned weight starts at 0 and gets no gradient: then decay, momentum and step leave it at exactly 0.
        # Filled rather than multiplied, because 0 * inf of a diverging run would bring it back as NaN.
        for weight, gone in self.pruned:
            if weight.grad is not None:  # frozen, or of a layer that is not called
                weight.grad.masked_fill_(gone, 0.0)
        self.optimiser.step()
        return loss.detach().double()

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self._forward(part) for part in x.split(1000)])

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        """What the network answers to images and labels; nothing is learned."""
        return faithful.ask(self.model, self.mask, x, y)

    def store(self) -> None:
        """The model's own weights were trained; they get their usual layout back."""
        self._lay_out(torch.contiguous_format)


class Sparse:
    """The engine that touches surviving weights only (``sparse.SparseNet``): the same steps, many times faster."""

    name, count, seconds = "sparse", 1, (0.0,)

    def __init__(self, model: nn.Module, mask: Mask, recipe: Recipe):
        self.net, self.recipe = sparse.SparseNet(model, mask), recipe
        self.images, self.logits, self.store = self.net.pixels, self.net.logits, self.net.store
        self.answer = self.net.answer

    def step(self, x: Tensor, y: Tensor, lr: float) -> float:
        return self.net.step(
            x, y, lr, self.recipe.momentum, self.recipe.weight_decay, self.recipe.nesterov
        )


class Shared:
    """Several of ``Sparse`` on the same batches (``sparse.Together``): losses are [count], logits [n, count * classes]."""

    name = "sparse"

    def __init__(self, trainers: Sequence[Sparse], recipe: Recipe):
        self.nets, self.recipe, self.count = (
            sparse.Together([trainer.net for trainer in trainers]),
            recipe,
            len(trainers),
        )
        self.images, self.store, self.seconds = self.nets.pixels, self.nets.store, self.nets.seconds

    def step(self, x: Tensor, y: Tensor, lr: float) -> np.ndarray:
        return self.nets.step(
            x, y, lr, self.recipe.momentum, self.recipe.weight_decay, self.recipe.nesterov
        )

    def logits(self, x: Tensor) -> Tensor:
        return self.nets.logits(x).flatten(1)


ENGINES = {"dense": Dense, "sparse": Sparse}
#: Share of the multiply-adds that survive under which the sparse engine is used; about where both cost the same (`python -m benchmarks`).
SPARSE_BELOW = 0.8


def live(model: nn.Module, mask: Mask) -> float:
    """Surviving multiply-adds of a forward pass over all of them, in [0, 1]."""
    return masks.flops(model, mask) / masks.flops(model, masks.ones(model))


def choose_engine(model: nn.Module, mask: Mask, recipe: Recipe) -> str:
    """``"sparse"`` where it pays, else ``"dense"``; warns where it would pay and can not train the network."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not (on_cpu and recipe.precision == "fp32"):
        return "dense"
    if reason := sparse.unsupported(model):
        if masks.density(mask) < SPARSE_BELOW:
            warnings.warn(f"training on the dense engine, which is slower: {reason}", stacklevel=4)
        return "dense"
    return "sparse" if live(model, mask) < SPARSE_BELOW else "dense"


@cache
def _product_precision() -> str:
    """``"medium"`` if that still multiplies float32 numbers as float32 on this processor (on others it is bfloat16), else ``"highest"``."""
    torch.set_float32_matmul_precision("medium")
    a, b = torch.randn((2, 512, 512), generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    return "medium" if (a @ b - exact).norm() < 2e-6 * exact.norm() else "highest"


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Inside, matrix products on the CPU take PyTorch's fastest path that is true float32; afterwards all is as before."""
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cpu":
            torch.set_float32_matmul_precision(_product_precision())
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Fraction of rows of ``logits`` [n, classes] whose largest entry is the label."""
    return float((logits.argmax(1) == y).double().mean())


def epochs(split: Split, recipe: Recipe) -> Iterator[Iterator[tuple[Tensor, Tensor, float]]]:
    """For each epoch its steps: images, labels, learning rate. Everything that depends on the seed of ``recipe`` happens here."""
    generator = torch.Generator().manual_seed(recipe.seed)
    per_epoch = math.ceil(len(split) / recipe.batch_size)

    def steps(epoch: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        order = torch.randperm(len(split), generator=generator).to(split.x.device)
        for step, index in enumerate(order.split(recipe.batch_size), epoch * per_epoch):
            x = split.x.index_select(0, index)  # several times faster than split.x[index]
            x = data.crop_and_flip(x, generator) if recipe.augment else x
            rising = min(1.0, (step + 1) / (per_epoch * recipe.warm_up)) if recipe.warm_up else 1.0
            yield (
                x,
                split.y[index],
                rising * recipe.lr * DECAYS[recipe.decay](step, per_epoch * recipe.epochs),
            )

    return map(steps, range(recipe.epochs))


def train(
    model: nn.Module,
    mask: Mask,
    splits: Splits,
    recipe: Recipe,
    engine: str | None = None,
    observe: Callable[[dict], None] | None = None,
) -> pd.DataFrame:
    """Train ``model`` in place under ``mask``; afterwards every pruned weight is exactly 0.

    What is trained is the network without its dead units, where ``compaction.compact`` can read it; what is removed without
    being pruned, such as a dead unit's bias, stays as it was, and so does a frozen parameter. The same seed, device, thread count and
    engine give the same bits; the noise of a network that draws some, as dropout does, follows from the seed, and the global random
    state is left alone.

    The sparse engine and the compacted network are used if they answer a few images as ``model`` itself does, in both modes and with the
    same gradients; otherwise ``model`` itself is trained on the dense engine, and a warning says what was different.

    Args:
        splits: on the model's device. Test accuracy is recorded at every epoch and decides nothing.
        engine: a key of ``ENGINES``; None is ``choose_engine``'s.
        observe: called after each epoch with its row. What it raises ends the training; the weights of ``model`` are then undefined.

    Returns:
        One row an epoch: epoch (from 1), loss (mean over the training images), validation_accuracy, test_accuracy.
        A run whose loss stops being finite ends with that epoch's row; its loss says so.

    Raises:
        UserError: a mask of another network, an unknown engine, a network the sparse engine can not train, or one that can not learn these
            images in batches of this size.
    """
    small, trainer = _prepare(model, mask, splits, recipe, engine)
    (log,) = _fit(trainer, splits, recipe, observe)
    if small:
        small.restore(model)
    return log


def train_together(
    models: Sequence[nn.Module], pruned: Sequence[Mask], splits: Splits, recipe: Recipe
) -> list[pd.DataFrame]:
    """``train`` for several networks on the same batches; each learns the same, to the last bit, as alone.

    Those that the sparse engine trains and that begin with a ``Linear`` share the work of bringing images into place.

    Returns:
        The table of ``train`` for each network. One whose loss stops being finite ends with that epoch's row.
    """
    prepared = [
        _prepare(model, mask, splits, recipe) for model, mask in zip(models, pruned, strict=True)
    ]
    sharing = [
        trainer
        for _, trainer in prepared
        if isinstance(trainer, Sparse) and trainer.net.reads_pixels()
    ]
    logs = {
        id(trainer): log
        for trainer, log in zip(
            sharing, _fit(Shared(sharing, recipe), splits, recipe) if sharing else []
        )
    }
    for _, trainer in prepared:
        if id(trainer) not in logs:
            (logs[id(trainer)],) = _fit(trainer, splits, recipe)
    for model, (small, _) in zip(models, prepared):
        if small:
            small.restore(model)
    return [logs[id(trainer)] for _, trainer in prepared]


def check(model: nn.Module, splits: Splits, batch_size: int) -> None:
    """Raise a ``UserError`` unless ``splits`` is a data set that ``model`` can learn in batches of this size."""
    if not isinstance(splits, Splits):
        raise UserError(
            f"a data set is what data.load or data.from_arrays gives, not {shown(splits)}"
        )
    images, labels = splits.train.x, splits.train.y
    last = labels.argmax()[None]
    check_batch(model, images[last], labels[last])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "every parameter is frozen and none could learn; call model.requires_grad_(True)"
        )
    alone = len(images) % batch_size == 1 or batch_size == 1
    few = images[: 1 if alone else 2], labels[: 1 if alone else 2]
    try:
        faithful.ask(model, masks.ones(model), *few)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        reason = str(error).partition("\n")[0]
        if alone:
            raise UserError(
                f"{len(images)} images in batches of {batch_size} leave a batch of one image, "
                f"which this network can not learn from ({reason}); choose another batch_size"
            ) from error
        raise UserError(f"the network fails in train mode: {reason}") from error


def _prepare(
    model: nn.Module, mask: Mask, splits: Splits, recipe: Recipe, engine: str | None = None
) -> tuple[compaction.Compact | None, Dense | Sparse]:
    """The compacted network, None where the whole one is trained, and what trains it."""
    masks.check(model, mask)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"a recipe is a training.Recipe, or one of training.RECIPES, not {shown(recipe)}"
        )
    check(model, splits, recipe.batch_size)
    pick("engine", engine or "dense", ENGINES)
    try:
        small = compaction.compact(model, mask, fold=False)
    except UserError:  # a network of the user's own that it can not read
        small = None
    network, alive = (small.model, small.mask) if small else (model, mask)
    if engine == "sparse" and (reason := sparse.unsupported(network)):
        raise UserError(
            f"the sparse engine can not train this network: {reason}; use engine='dense'"
        )
    chosen = engine or choose_engine(network, alive, recipe)
    if not small and chosen == "dense":
        return None, ENGINES[chosen](model, mask, recipe)
    trainer = ENGINES[chosen](network, alive, recipe)

    def answer(x: Tensor, y: Tensor) -> faithful.Answer:
        found = trainer.answer(x, y)
        return found._replace(gradients=small.widen(found.gradients)) if small else found

    if not (part := faithful.departure(model, mask, splits.train.x, splits.train.y, answer)):
        return small, trainer
    reason = f"the {'sparse engine' if chosen == 'sparse' else 'compacted network'} has another {part} than the network itself"
    if engine == "sparse":
        raise UserError(
            f"the sparse engine can not train this network: {reason}; use engine='dense'"
        )
    warnings.warn(
        f"training the network itself on the dense engine, which is slower: {reason}", stacklevel=3
    )
    return None, ENGINES["dense"](model, mask, recipe)


def _fit(
    trainer: Dense | Sparse | Shared,
    splits: Splits,
    recipe: Recipe,
    observe: Callable[[dict], None] | None = None,
) -> list[pd.DataFrame]:
    """Trains, and returns the table of each network of ``trainer``; its ``attrs`` say which engine it was and its share of the seconds."""
    start = time.perf_counter()
    own, logs = (
        {part: getattr(splits, part) for part in ("train", "validation", "test")},
        [[] for _ in range(trainer.count)],
    )
    if not recipe.augment:  # which needs whole images
        own = {part: replace(split, x=trainer.images(split.x)) for part, split in own.items()}
    device, drawn = splits.train.x.device, torch.Generator().manual_seed(recipe.seed)
    with fast_products(device):
        for epoch, steps in enumerate(epochs(own["train"], recipe), 1):
            with noise.drawn_from(drawn, device):
                losses = torch.as_tensor(
                    sum(trainer.step(x, y, lr) * len(y) for x, y, lr in steps) / len(splits.train)
                ).reshape(-1)
                logits = {
                    part: trainer.logits(own[part].x).unflatten(1, (trainer.count, -1))
                    for part in ("validation", "test")
                }
            for k, (log, loss) in enumerate(zip(logs, losses.tolist())):
                if not log or math.isfinite(log[-1]["loss"]):
                    log.append(
                        {
                            "epoch": epoch,
                            "loss": loss,
                            **{
                                f"{part}_accuracy": accuracy(found[:, k], own[part].y)
                                for part, found in logits.items()
                            },
                        }
                    )
            if observe is not None:
                observe(dict(logs[0][-1]))
            if not any(math.isfinite(log[-1]["loss"]) for log in logs):
                break
    trainer.store()
    tables, alone = [pd.DataFrame(log) for log in logs], trainer.seconds
    shared = (time.perf_counter() - start - sum(alone)) / trainer.count
    for table, seconds in zip(tables, alone):
        table.attrs.update(engine=trainer.name, seconds=shared + float(seconds))
    return tables
