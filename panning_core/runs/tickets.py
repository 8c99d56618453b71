"""Ensembles of sparse networks: FreeTickets (Liu et al. 2022, arXiv 2106.14568).

A ticket is a network at one time, and an ensemble answers with the mean of its tickets'
probabilities. The tickets of a DST ensemble are sparse networks that were trained apart; those of
an EDST ensemble come from one training that explores masks, settles, is shaken by an update with a
large death rate, settles again, and so on. Controls: dense networks that were trained apart, and
snapshots of one sparse training whose mask stays once it has explored.

A training is a list of phases with constant learning rates. Ours: momentum begins at 0 in each of
them; a ticket is the last epoch of its phase, not the best one on validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import data, masks, models, training
from ..analysis import calibration
from ..data import Split, Splits
from ..errors import UserError, fraction, unknown, whole
from ..masks import Mask
from ..methods.dynamic import Exchange, begin
from . import base
from .base import short

#: method -> whether its tickets are trained apart
APART = {"dense": True, "dst": True, "edst": False, "snapshots": False}
#: images a step, and images that are looked at after each epoch
BATCH, GLANCE = 100, 100
#: tells the members of an ensemble, and the phases of a training, apart
MEMBER, PHASE = 1_000, 1_000_000


class Phase(NamedTuple):
    """A part of a training: epochs at one learning rate."""

    epochs: int
    lr: float
    #: the death rate of an update after its first step; None is no such update
    shake: float | None = None
    #: whether a ticket is taken at its end
    ticket: bool = False
    #: whether the mask moves
    moves: bool = True


def single(unit: int) -> list[Phase]:
    """A training of two and a half units, whose rate falls to a tenth at a half and at three
    quarters."""
    half = 5 * unit // 4
    return [Phase(half, 0.1), Phase(half // 2, 0.01), Phase(half // 2, 0.001, ticket=True)]


def sequence(unit: int, tickets: int, shake: float | None, moves: bool = True) -> list[Phase]:
    """Exploration for one and a half units, and tickets of a unit each, all but the first after an
    update with the death rate ``shake``; ``moves`` says whether the mask does in tickets."""
    phases = [Phase(3 * unit // 2, 0.1)]
    for ticket in range(tickets):
        first = shake if ticket else None
        phases.append(Phase(unit // 2, 0.01, first, moves=moves))
        phases.append(Phase(unit // 2, 0.001, ticket=True, moves=moves))
    return phases


@dataclass(frozen=True)
class Tickets(base.Run):
    """One ensemble; SGD with momentum 0.9 and weight decay 5e-4, as published.

    Attributes:
        seed: of initial weights, masks and the order of the images; the first members of ensembles
            that are trained apart share it with EDST's network.
        dataset, images: a name of ``data.load``, and how many of its first training images; None
            are all.
        model: a key of ``models.MODELS``.
        method: a key of ``APART``.
        sparsity: of every ticket; 0 for dense ones.
        tickets: of the ensemble.
        unit: epochs of an EDST ticket, a multiple of 8; published: 100.
        updates: of the mask in a unit; published: about 39.
        death: the part of a layer's weights that an update exchanges.
        shake: of EDST, the same for the update between two tickets.
    """

    kind: ClassVar[str] = "tickets"
    on_cuda: ClassVar[bool] = True
    seed: int = 0
    dataset: str = "digits"
    images: int | None = None
    model: str = "lenet300"
    method: str = "edst"
    sparsity: float = 0.8
    tickets: int = 3
    unit: int = 8
    updates: int = 10
    death: float = 0.5
    shake: float = 0.8

    def __post_init__(self):
        for what, value, known in (
            ("data set", self.dataset, data.names()),
            ("model", self.model, models.MODELS),
            ("method of an ensemble", self.method, APART),
        ):
            if value not in list(known):
                raise unknown(what, value, known)
        for name, least in (("seed", 0), ("tickets", 1), ("unit", 8), ("updates", 1)):
            whole(f"{name} of an ensemble", getattr(self, name), least)
        if self.images is not None:
            whole("images of an ensemble", self.images, 1)
        if self.unit % 8:
            raise UserError(
                f"unit of an ensemble is {self.unit}; a quarter of two and a half units is whole "
                "epochs for a multiple of 8"
            )
        for name in ("sparsity", "death", "shake"):
            fraction(f"{name} of an ensemble", getattr(self, name))
        if self.method == "dense" and self.sparsity:
            raise UserError(f"dense networks have sparsity 0, not {self.sparsity}; name a method")

    def phases(self) -> list[Phase]:
        """Those of each training."""
        if APART[self.method]:
            return single(self.unit)
        moves = self.method == "edst"
        return sequence(self.unit, self.tickets, self.shake if moves else None, moves)

    def execute(self, context: base.Context) -> dict:
        """Train, and measure the ensemble and its first member by itself.

        Returns:
            ``test_accuracy``, ``nll`` and ``ece`` of the ensemble on the test images, the same of
            its ``first`` member, ``validation_accuracy``; ``disagreement``, and ``members``, the
            accuracy of each; ``training_flops`` and ``first_training_flops``, ``dense_flops`` (of
            one dense network's training), ``inference_flops`` an image of all tickets, and their
            ``density``.
        """
        splits = data.load(self.dataset).first(train=self.images).to(context.device)
        count = self.tickets if APART[self.method] else 1
        found = [t for k in range(count) for t in trained(self, splits, self.seed + MEMBER * k)]
        each = [flops for *_, flops in found]
        labels, answers = splits.test.y, [ticket.test for ticket in found]
        validation = torch.stack([ticket.validation for ticket in found]).mean(0)
        model = models.build(self.model, splits.input_shape, splits.classes, self.seed)
        dense = 3 * masks.flops(model, masks.ones(model)) * len(splits.train)
        return {
            **scores(torch.stack(answers).mean(0), labels),
            **{f"first_{name}": v for name, v in scores(answers[0], labels).items()},
            "validation_accuracy": training.accuracy(validation, splits.validation.y),
            "disagreement": short(disagreement(answers)),
            "members": [short(training.accuracy(each, labels)) for each in answers],
            # Tickets of one training cost what its last one has cost.
            "training_flops": sum(each) if APART[self.method] else each[-1],
            "first_training_flops": each[0],
            "dense_flops": dense * sum(phase.epochs for phase in single(self.unit)),
            "inference_flops": sum(masks.flops(model, ticket.mask) for ticket in found),
            "density": short(masks.density(found[0].mask)),
        }


class Ticket(NamedTuple):
    """What a network answers at one time: probabilities [n, classes]; and what it cost until
    then."""

    test: Tensor
    validation: Tensor
    mask: Mask
    flops: int


def trained(run: Tickets, splits: Splits, seed: int) -> list[Ticket]:
    """The tickets of one training.

    Raises:
        UserError: more updates in a unit than steps.
    """
    steps = run.unit * -(-len(splits.train) // BATCH)
    if run.sparsity and run.updates > steps:
        raise UserError(
            f"updates of an ensemble is {run.updates}, and a unit has {steps} steps; at most one "
            "update a step"
        )
    model = models.build(run.model, splits.input_shape, splits.classes, seed)
    model = model.to(splits.train.x.device)
    mask, flops, found = begin(model, 1 - run.sparsity, seed), 0, []
    # What is measured after each epoch is not recorded.
    seen = splits.first(validation=GLANCE, test=GLANCE)
    for place, phase in enumerate(run.phases()):
        recipe = training.Recipe(
            phase.epochs, BATCH, phase.lr, weight_decay=5e-4, decay="constant",
            seed=seed + PHASE * place,
        )  # fmt: skip
        update = None
        if phase.moves and run.sparsity:
            update = Exchange(steps // run.updates, run.death, phase.shake)
        log = training.train(model, mask, seen, recipe, update=update)
        mask = log.attrs.get("mask", mask)
        flops += log.attrs["training_flops"]
        if phase.ticket:
            answers = [probabilities(model, part) for part in (splits.test, splits.validation)]
            found.append(Ticket(*answers, mask, flops))
    return found


def probabilities(model: nn.Module, split: Split) -> Tensor:
    """[n, classes], in eval mode."""
    with models.modes(model, training=False):
        return training.logits(model, split.x).double().softmax(1)


def scores(answers: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Accuracy, negative log-likelihood in nats, and expected calibration error in the 15 bins of
    Guo et al. 2017 (the authors' code has 14), of probabilities [n, classes]."""
    return {
        "test_accuracy": training.accuracy(answers, labels),
        "nll": short(-calibration.log_likelihood(answers, labels)),
        "ece": short(calibration.calibration_error(answers, labels)),
    }


def disagreement(answers: Sequence[Tensor]) -> float:
    """The share of inputs on which two tickets give different labels, a mean over all pairs; 0 of
    one ticket."""
    labels = [each.argmax(1) for each in answers]
    shares = [float((a != b).double().mean()) for a, b in combinations(labels, 2)]
    return sum(shares) / max(1, len(shares))
