"""Gumbel-Softmax gates: weights and topology are learned together by gradient descent (Zhang, Tao &
Zhang 2023).

Every weight is multiplied by a gate, 0 or 1, that is drawn anew in every step; the probability that
it is open is learned with the weights. ``Gates`` puts gates on the ``Conv2d`` and ``Linear`` layers
of any network by ``torch.nn.utils.parametrize``, ``fit_penalty`` (the paper's way) and
``fit_budget`` (ours) train them, ``learn`` does all of it for a data set and returns an ordinary
network with an ordinary mask.

The paper gives a gate two logits and draws it by the straight-through Gumbel-softmax of both. The
difference of two Gumbel variables is a logistic one, so one logit, their difference, with logistic
noise is the same gate, and a step of Adam on both logits is a step of twice the rate on the
difference.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import compaction, graph, masks, training
from ..data import Splits
from ..errors import UserError, fraction_kept, is_number, pick
from ..inspection.noise import drawn_from
from ..masks import Mask
from ..models import prunable

FIRST = 6  #: one of so many steps is on the whole network,
WIDE = 20  #: down to so many times the budget
_LOSS = nn.functional.cross_entropy

#: what has a gate: shape of a weight -> shape of its logits
STRUCTURES: dict[str, Callable[[torch.Size], tuple[int, ...]]] = {
    "weights": lambda shape: tuple(shape),
    "outputs": lambda shape: (shape[0], *[1] * (len(shape) - 1)),
    "inputs": lambda shape: (1, shape[1], *[1] * (len(shape) - 2)),
}


class Gate(nn.Module):
    """The gates of one weight tensor: what ``parametrize`` calls to get weight * gate.

    Attributes:
        logits: how much a gate is open; above ``threshold`` with the noise of the moment, it is.
        noise: of the same shape, or None for the final topology.
        threshold: 0, or where exactly so many gates of the whole network are open.
        temperature: tau of the straight-through gradient, that of sigmoid((logits + noise -
            threshold) / tau).
    """

    def __init__(self, logits: Tensor, temperature: float):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.noise: Tensor | None = None
        self.threshold, self.temperature = 0.0, temperature

    def level(self) -> Tensor:
        return self.logits if self.noise is None else self.logits + self.noise

    def forward(self, weight: Tensor) -> Tensor:
        return weight * straight_through(self.level() - self.threshold, self.temperature)


def straight_through(level: Tensor, temperature: float) -> Tensor:
    """1 where ``level`` is above 0, else 0; its gradient is that of sigmoid(level /
    temperature).
    """
    soft = torch.sigmoid(level / temperature)
    return (level > 0).to(soft) + (soft - soft.detach())


def _weights_for_gates(model: nn.Module) -> dict[str, nn.Parameter]:
    if any(parametrize.is_parametrized(layer, "weight") for layer in model.modules()):
        raise UserError("the network has gates already; remove them first")
    weights = prunable(model)
    if other := [name for name in weights if name.rpartition(".")[2] != "weight"]:
        raise UserError(f"gates are put on tensors that are named weight, and not {other[0]}")
    if shared := graph.shared(model):
        raise UserError(f"gates need a weight of its own for every layer; {shared[0]} has two")
    return weights


class Gates:
    """The gates of a network, on every ``Conv2d`` and ``Linear`` of it; biases have none.

    Args:
        structure: a key of ``STRUCTURES``: gates of single weights, of whole output units or
            channels (the last layer's always stay), or of whole inputs of a layer.
        temperature: tau of the gradient.
        generator: of all noise, on the CPU.
        initial: the logits' first values, by the name of the weight; None is 0, open half of the
            time.

    Attributes:
        plain: a copy of the network without gates, whose paths can be followed.

    Raises:
        UserError: an unknown structure, a temperature that is not above 0, or a network that has
            gates already.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: str = "weights",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ):
        shape_of = pick("structure", structure, STRUCTURES)
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature is {temperature}; it must be a number above 0")
        weights = _weights_for_gates(model)
        self.model, self.structure, self.temperature = model, structure, temperature
        self.generator = generator or torch.Generator().manual_seed(0)
        self.shapes = {name: w.shape for name, w in weights.items()}
        self._layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
        self.plain = copy.deepcopy(model)
        graph.inherit(self.plain, model)
        self.gates: dict[str, Gate] = {}
        for name, layer in list(self._layers.items())[: -1 if structure == "outputs" else None]:
            logits = (
                torch.zeros(shape_of(weights[name].shape))
                if initial is None
                else initial[name].clone()
            )
            self.gates[name] = Gate(logits.to(weights[name]), temperature)
            parametrize.register_parametrization(
                layer, "weight", self.gates[name], unsafe=True
            )  # shape and type stay; saves a call of ours

    @property
    def count(self) -> int:
        """How many gates there are."""
        return sum(gate.logits.numel() for gate in self.gates.values())

    def logits(self) -> list[nn.Parameter]:
        """What is learned besides the network's own parameters."""
        return [gate.logits for gate in self.gates.values()]

    def weights(self) -> list[nn.Parameter]:
        """The network's own parameters: ungated weights, biases, BatchNorm."""
        own = {id(p) for p in self.logits()}
        return [p for p in self.model.parameters() if id(p) not in own]

    def _noise(self, gate: Gate) -> Tensor:
        uniform = torch.rand(
            gate.logits.shape, generator=self.generator, dtype=gate.logits.dtype
        ).clamp_(1e-7, 1 - 1e-7)
        return torch.logit(uniform).to(gate.logits.device)

    def draw(self, scale: float = 1.0, opened: int | None = None) -> None:
        """Fresh noise, times ``scale``, for the next passes; 0 is the final topology, argmax of the
        paper's two logits.

        A draw of scale 1 is a Gumbel-softmax sample of every gate. With ``opened``, the threshold
        is such that exactly so many gates are open, those with the largest levels; where levels are
        equal at the threshold, as before any training, fewer.

        Raises:
            UserError: a number of gates that there is not.
        """
        if opened is not None and not 0 <= opened <= self.count:
            raise UserError(f"cannot open {opened} gates; this network has {self.count}")
        for gate in self.gates.values():
            gate.noise = self._noise(gate) * scale if scale else None
        threshold = 0.0
        if opened is not None:
            with torch.no_grad():
                levels = torch.cat([gate.level().flatten() for gate in self.gates.values()])
            threshold = (
                levels.kthvalue(len(levels) - opened).values
                if opened < len(levels)
                else levels.min() - 1
            )
        for gate in self.gates.values():
            gate.threshold = threshold

    def density(self) -> Tensor:
        """The share of open gates in a draw of its own with temperature 1, to be differentiated."""
        return (
            sum(
                straight_through(gate.logits + self._noise(gate), 1.0).sum()
                for gate in self.gates.values()
            )
            / self.count
        )

    @torch.no_grad()
    def mask(self, budget: int | None = None) -> Mask:
        """The final topology: the gates that are open now.

        Args:
            budget: instead, those with the largest logits and only their effective weights, as many
                as leave at most so many gates with an effective weight: of gates on weights, at
                most so many weights that do something.

        Raises:
            UserError: a budget that not even one path meets.
        """
        if budget is None:
            return self._opened()
        order = torch.cat([gate.logits.flatten() for gate in self.gates.values()]).sort(
            descending=True
        ).values.tolist() + [-math.inf]
        opened = (
            bisect_right(range(self.count + 1), budget, key=lambda n: self._alive(order[n])) - 1
        )  # it grows with n
        mask = masks.effective(self.plain, self._opened(order[opened]))
        if not masks.count(mask):
            raise UserError(
                f"a budget of {budget} leaves no path through this network open; ask for more, or"
                " train the gates longer"
            )
        return mask

    def _opened(self, threshold: float | None = None) -> Mask:
        opened = {
            name: gate.logits > (gate.threshold if threshold is None else threshold)
            for name, gate in self.gates.items()
        }
        device = self.logits()[0].device
        return {
            name: (
                opened[name].expand(shape).clone()
                if name in opened
                else torch.ones(shape, dtype=torch.bool, device=device)
            )
            for name, shape in self.shapes.items()
        }

    def _alive(self, threshold: float) -> int:
        """How many gates have an effective weight behind them."""
        live = masks.effective(self.plain, self._opened(threshold))
        across = {
            name: [d for d, n in enumerate(gate.logits.shape) if n < live[name].shape[d]]
            for name, gate in self.gates.items()
        }
        return sum(
            int((live[name].sum(dims) if dims else live[name]).count_nonzero())
            for name, dims in across.items()
        )

    def remove(self) -> None:
        """An ordinary network again, with the weights that were behind the gates."""
        for name in self.gates:
            parametrize.remove_parametrizations(
                self._layers[name], "weight", leave_parametrized=False
            )


def fit_penalty(
    model: nn.Module,
    gates: Gates,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    lr: float = 0.01,
    penalty: float = 0.01,
    target: float = 0.0,
) -> list[float]:
    """Train weights and gates in place as the paper's code does: Adam on loss + ``penalty`` *
    |``target`` - density|, one step a batch (x, y).

    Returns:
        The loss of every step, without the penalty.
    """
    optimiser = torch.optim.Adam(
        [{"params": gates.weights()}, {"params": gates.logits(), "lr": 2 * lr}], lr
    )
    losses = []
    for x, y in batches:
        gates.draw()
        now = loss(model(x), y)
        optimiser.zero_grad()
        (now + penalty * (target - gates.density()).abs()).backward()
        optimiser.step()
        losses.append(float(now.detach()))
    gates.draw(0.0)
    return losses


def falling(
    start: int,
    budget: int,
    steps: int,
    noise: tuple[float, float] = (1.0, 0.0),
    within: float = 0.8,
) -> Callable[[int], tuple[int, float, float]]:
    """A plan for ``fit_budget``: step -> how many gates are open, how strong their noise is, and a
    factor for the rates.

    The number falls from ``start`` to ``budget`` exponentially, ``noise`` from its first to its
    second value linearly, both in the first part ``within`` of the steps; in the rest the rates go
    to 0 along a cosine.
    """

    def plan(step: int) -> tuple[int, float, float]:
        progress = min(1.0, step / (within * steps))
        rest = max(0, step - round(within * steps))
        return (
            round(start * (budget / start) ** progress),
            noise[0] + (noise[1] - noise[0]) * progress,
            training.DECAYS["cosine"](rest, max(1, steps - round(within * steps))),
        )

    return plan


def fit_budget(
    model: nn.Module,
    gates: Gates,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    plan: Callable[[int], tuple[int, float, float]],
    lr: float,
    gate_lr: float,
    forget: float,
) -> list[float]:
    """Train weights and gates in place under a budget, ours: in every step exactly as many gates
    are open as ``plan`` says.

    Weights learn by Adam, gates by momentum. The gates' gradients are divided by the root of the
    mean square of *all* of them, so that a gate that matters more moves more, which Adam would
    undo. Logits decay at the rate ``forget``, so that a gate is judged by its last 1 / (gate_lr *
    forget) steps or so and not by what it was worth in a network that is gone.

    Args:
        batches: one (x, y) a step.
        lr, gate_lr: rates of weights and gates, times the factor of the plan.

    Returns:
        The loss of every step.
    """
    adam, momentum = (
        torch.optim.Adam(gates.weights(), lr),
        torch.optim.SGD(gates.logits(), gate_lr, momentum=0.9, dampening=0.9, weight_decay=forget),
    )
    square, losses = None, []
    for step, (x, y) in enumerate(batches):
        opened, noise, rate = plan(step)
        gates.draw(noise, opened)
        now = loss(model(x), y)
        adam.zero_grad()
        momentum.zero_grad()
        now.backward()
        # A layer that is not called has no gradient.
        slopes = [p.grad for p in gates.logits() if p.grad is not None]
        latest = sum(slope.square().sum() for slope in slopes) / gates.count
        square = latest if square is None else torch.lerp(latest, square, 0.99)
        for slope in slopes:
            slope /= square.sqrt() + 1e-20
        adam.param_groups[0]["lr"], momentum.param_groups[0]["lr"] = lr * rate, gate_lr * rate
        adam.step()
        momentum.step()
        losses.append(float(now.detach()))
    gates.draw(0.0, opened)
    return losses


def learn(
    model: nn.Module,
    splits: Splits,
    density: float,
    seed: int,
    *,
    epochs: int = 36,
    batch_size: int = 256,
    lr: float = 0.005,
    gate_lr: float = 0.03,
    forget: float = 0.3,
    temperature: float = 1.0,
    penalty: float = 0.0,
    structure: str = "weights",
) -> tuple[Mask, list[dict]]:
    """Learn weights and topology of ``model`` in place, on the cross-entropy of the training
    images.

    Args:
        density: the fraction of gates to stay open: of gates on weights, the mask has at most
            round(density * N) *effective* weights and no others.
        seed: of the gates' noise, the network's own and the order of the images.
        epochs, batch_size: of this training; what is left of the network may be trained further.
        lr, gate_lr, forget: as in ``fit_budget``.
        temperature, structure: as in ``Gates``.
        penalty: above 0, the paper's way instead: ``fit_penalty`` with ``density`` as its target;
            the budget is met afterwards.

    Returns:
        The mask, and a row for each epoch: its mean ``loss`` and no ``events``.

    Raises:
        UserError: numbers out of range, a budget that leaves no path, or bad input of ``Gates``.
    """
    _check_numbers(density, lr, gate_lr, forget, penalty)
    recipe = training.Recipe(epochs, batch_size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    training.check(model, splits, batch_size)
    gates = Gates(model, structure, temperature, generator)
    budget = max(1, round(density * gates.count))
    per_epoch = math.ceil(len(splits.train) / batch_size)
    steps, small = epochs * per_epoch, None
    batches = ((x, y) for epoch in training.epochs(splits.train, recipe) for x, y, _ in epoch)
    model.train()
    with drawn_from(torch.Generator().manual_seed(seed), splits.train.x.device):
        if penalty:
            losses = fit_penalty(model, gates, batches, _LOSS, lr, penalty, density)
        else:
            rates = lr, gate_lr, forget
            losses, gates, small = _fit_narrowing(model, gates, batches, budget, steps, rates)
    mask = gates.mask(budget)
    gates.remove()
    if small:
        mask = small.widen(mask)
        small.restore(model)
    return mask, [
        {"loss": sum(part) / len(part), "events": []}
        for part in (losses[i : i + per_epoch] for i in range(0, steps, per_epoch))
    ]


def _check_numbers(
    density: float, lr: float, gate_lr: float, forget: float, penalty: float
) -> None:
    if (
        not fraction_kept(density)
        or not all(map(is_number, (lr, gate_lr, forget, penalty)))
        or not min(lr, gate_lr) > 0
        or not min(forget, penalty) >= 0
    ):
        raise UserError(
            "gates take a density above 0 and at most 1, rates above 0, and forget and penalty"
            f" of at least 0, got density {density}, lr {lr}, gate_lr {gate_lr}, forget {forget},"
            f" penalty {penalty}"
        )


def _fit_narrowing(
    model: nn.Module,
    gates: Gates,
    batches: Iterator[tuple[Tensor, Tensor]],
    budget: int,
    steps: int,
    rates: tuple[float, float, float],
) -> tuple[list[float], Gates, compaction.Compact | None]:
    """``fit_budget``. Gates on weights begin on the whole network; once ``WIDE`` times the budget
    is open, what no open gate reads is removed and the others go on, many times faster. A network
    that ``compaction`` cannot read stays whole.

    Returns:
        The losses, the gates at the end, and the smaller network, if there was one.
    """
    wide, first = WIDE * budget, steps // FIRST
    narrows = gates.structure == "weights" and wide < gates.count and first
    if not narrows or not _can_narrow(gates.plain):
        plan = falling(gates.count, budget, steps)
        return fit_budget(model, gates, batches, _LOSS, plan, *rates), gates, None
    plan = falling(gates.count, wide, first, (1.0, 0.5), 1.0)
    losses = fit_budget(model, gates, islice(batches, first), _LOSS, plan, *rates)
    logits = {name: gate.logits.detach() for name, gate in gates.gates.items()}
    opened = gates.mask()
    gates.remove()
    small = compaction.compact(
        model, {name: _between(m).clone() for name, m in opened.items()}, fold=False
    )
    gates = Gates(
        small.model, gates.structure, gates.temperature, gates.generator, small.narrow(logits)
    )
    plan = falling(min(wide, gates.count), budget, steps - first, (0.5, 0.0))
    losses += fit_budget(small.model, gates, batches, _LOSS, plan, *rates)
    return losses, gates, small


def _can_narrow(model: nn.Module) -> bool:
    try:
        compaction.compact(model, masks.ones(model))
    except UserError:
        return False
    return True


def _between(opened: Tensor) -> Tensor:
    """Every weight between a unit and an input that both have an open gate."""
    pairs = opened.flatten(2).any(2) if opened.dim() > 2 else opened
    both = pairs.any(1, keepdim=True) & pairs.any(0, keepdim=True)
    return both.view(*both.shape, *[1] * (opened.dim() - 2)).expand(opened.shape)
