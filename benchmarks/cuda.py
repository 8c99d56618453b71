"""What a machine with a GPU is for: it is asked whether it computes what a processor computes, and
then does the runs of study 08 that need it.

    python -m benchmarks.cuda FOLDER --minutes 9
    python -m benchmarks.cuda FOLDER --device cpu --profile quick,epochs=2

The second is a rehearsal without a GPU. It needs what a sweep needs, so no Jupyter, no agent's
packages and no numba; the images lie in ``$PANNING_DATA``, or in ``data/`` of the checkout. Runs
are done in the order of the profile and recorded stack by stack; the same command with the same
folder goes on, and ``python -m panning_core sweep 08_cifar10 --profile paper --merge LEDGER`` takes
the ledger over at home.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from panning_core import data, masks, metrics, models, pruning, training
from panning_core.__main__ import command_line
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.experiments.ledger import Ledger
from panning_core.masks import Mask
from panning_core.runs import prune
from panning_core.training import stacked

STUDY = "08_cifar10"
RECIPE = training.Recipe(epochs=1, batch_size=64, lr=0.05, weight_decay=5e-4, nesterov=True)
STACKS = (1, 2, 4, 8, 16, 32)  #: so many networks may be trained at once
EVALUATED = 1.15  #: times its steps an epoch takes with its two accuracies
METHODS = ("panning", "snip", "grasp", "synflow")  #: whose masks must be those of the CPU


# --- does it compute the same? --------------------------------------------------------------------


class Check(NamedTuple):
    """How far a device is from the CPU in one thing, and how far it may be."""

    what: str
    measured: float
    allowed: float

    def holds(self) -> bool:
        return self.measured <= self.allowed  # never true of NaN


def checks(device: str, splits: data.Splits) -> Iterator[Check]:
    """Training, scores and masks of ResNet-20 on ``device`` against the CPU.

    Convolutions are true float32 but for the masks, which are found as a sweep finds them.
    """
    few = splits.first(train=512, validation=64, test=64)
    batch = data.balanced_batch(splits.train, 2, torch.Generator().manual_seed(0))
    model = network(splits, 0)
    mask = masks.effective(model, pruning.prune(model, "snip", 0.5, batch)[0])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield from trained(device, few, model, mask)
        there, on_device = copy.deepcopy(model).to(device), [t.to(device) for t in batch]
        for name, metric in metrics.METRICS.items():
            own = masks.flatten(metric(model, mask, batch))
            found = masks.flatten(metric(there, moved(mask, device), on_device)).cpu()
            yield Check(f"scores of {name}", float((found - own).norm() / own.norm()), 0.01)
    whole = data.balanced_batch(splits.train, 10, torch.Generator().manual_seed(0))
    for method in METHODS:
        own, _ = pruning.prune(model, method, 0.02, whole)
        found, _ = pruning.prune(there, method, 0.02, tuple(t.to(device) for t in whole))
        both = {name: m & found[name].cpu() for name, m in own.items()}
        lost = 1 - masks.count(both) / masks.count(own)
        yield Check(f"weights of {method}'s mask that are others", lost, 0.01)


def trained(device: str, few: data.Splits, model: nn.Module, mask: Mask) -> Iterator[Check]:
    """The dense engine alone, in bfloat16, and several networks side by side."""
    others = [model, *(network(few, seed) for seed in (1, 2))]
    recipes = [replace(RECIPE, seed=seed) for seed in range(len(others))]
    right = [alone("cpu", few, *each, mask) for each in zip(others, recipes)]
    found = alone(device, few, model, RECIPE, mask)
    yield Check("dense training", apart(model, right[0], found), 0.02)
    half = replace(RECIPE, precision="bf16")
    own, found = (alone(where, few, model, half, mask) for where in ("cpu", device))
    yield Check("training in bf16", apart(model, own, found), 0.3)
    together = [copy.deepcopy(each).to(device) for each in others]
    stacked.train(together, [moved(mask, device)] * len(others), few.to(device), recipes)
    for seed, each in enumerate(zip(others, right, together)):
        yield Check(f"network {seed} of a stack", apart(*each), 0.02)


def network(splits: data.Splits, seed: int) -> nn.Module:
    return models.build("resnet20", splits.input_shape, splits.classes, seed, "panning")


def alone(
    device: str, splits: data.Splits, model: nn.Module, recipe: training.Recipe, mask: Mask
) -> nn.Module:
    """A copy of ``model``, trained on ``device``."""
    own = copy.deepcopy(model).to(device)
    training.train(own, moved(mask, device), splits.to(device), recipe, engine="dense")
    return own


def moved(mask: Mask, device: str) -> Mask:
    return {name: m.to(device) for name, m in mask.items()}


def apart(before: nn.Module, own: nn.Module, found: nn.Module) -> float:
    """How far two trained networks are apart, in units of the way that training took."""
    start, one, other = (
        masks.flatten(models.prunable(each)).cpu().double() for each in (before, own, found)
    )
    return float((other - one).norm() / (one - start).norm())


# --- how many at once -----------------------------------------------------------------------------


def plan(run: prune.Run, device: str, seconds: float, clock: Callable = time.perf_counter) -> int:
    """How many networks a stack should have so that most are trained in so many ``seconds``.

    Raises:
        UserError: not even one can be.
    """
    splits, recipe = run.splits().to(device), run.training_recipe()
    steps = recipe.epochs * -(-len(splits.train) // recipe.batch_size)
    taken = {}
    for count in STACKS:
        try:
            a_step = step_seconds(run, splits, count, clock)
        except torch.OutOfMemoryError:
            break
        taken[count] = steps * a_step * EVALUATED
        print(f"{count} at once: {taken[count] / 60:.1f} minutes")
    trained = {count: count * int(seconds / need) for count, need in taken.items()}
    best = max(trained, key=trained.get)
    if not trained[best]:
        raise UserError(
            f"{seconds / 60:.1f} minutes are left and a single network takes {taken[1] / 60:.1f};"
            " give more --minutes"
        )
    return best


def step_seconds(run: prune.Run, splits: data.Splits, count: int, clock: Callable) -> float:
    """Of one step of so many networks side by side."""
    device, recipe = splits.train.x.device, run.training_recipe()
    networks = [
        models.build(run.model, splits.input_shape, splits.classes, seed, run.init).to(device)
        for seed in range(count)
    ]
    recipes = [replace(recipe, seed=seed) for seed in range(count)]
    trainer = stacked.Stack(networks, [masks.ones(each) for each in networks], recipes)
    steps = next(iter(trainer.epochs(splits.train, torch.Generator(), 0)))
    for _, step in zip(range(3), steps):
        loss = trainer.step(*step)
    float(loss.sum())  # waits for the device
    start, done = clock(), 0
    for done, step in zip(range(1, 11), steps):
        loss = trainer.step(*step)
    float(loss.sum())
    return (clock() - start) / done


# --- the runs -------------------------------------------------------------------------------------


class TimeIsUp(BaseException):
    """No ``Exception``: what a run does about its own errors must not hold it up."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends what is inside after so many seconds; what a sweep has recorded by then is kept."""

    def ring(*_) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except TimeIsUp:
        print("the time is up")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(words: list[str] | None = None) -> int:
    begun, options = time.perf_counter(), read(words)
    studies.check_machine(None, options.device)
    os.environ["PANNING_RESULTS"] = str(options.folder.resolve())
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = studies.runs(STUDY, options.profile, options.device)
    found = []
    for check in checks(options.device, wanted[0].splits()):
        found.append(check)
        print(f"{'holds' if check.holds() else 'FAILS':7}{check.what}: {check.measured:.3g}")
    told = [{**check._asdict(), "holds": check.holds()} for check in found]
    (options.folder / "parity.json").write_text(json.dumps(told, indent=1) + "\n")
    if wrong := [check.what for check in found if not check.holds()]:
        raise UserError(f"{options.device} is too far from the CPU in {', '.join(wrong)}")

    def left() -> float:
        return 60 * options.minutes - (time.perf_counter() - begun)

    # Read where a sweep makes its tasks, in this process.
    prune.STACK = plan(wanted[0], options.device, left())
    with at_most(left()):
        studies.sweep(STUDY, options.profile, 1, options.device)
    ledger = studies.folder(STUDY, options.profile) / "runs.jsonl"
    print(f"{len(Ledger(ledger).rows())} of {len(wanted)} runs are in {ledger}")
    return 0


def read(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the ledger")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (9)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--profile", default="paper", help="paper, or with changed values")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(command_line(main))
