"""Gumbel-Softmax gates: weights and topology are learned together by gradient descent (Zhang, Tao & Zhang 2023).

Every weight is multiplied by a gate, 0 or 1, that is drawn anew in every step; the probability that it is open is learned
with the weights. ``Gates`` puts gates on the ``Conv2d`` and ``Linear`` layers of any network by ``torch.nn.utils.parametrize``,
``fit`` trains them, ``learn`` does all of it for a data set and returns an ordinary network with an ordinary mask.

The paper gives a gate two logits and draws it by the straight-through Gumbel-softmax of both. The difference of two Gumbel
variables is a logistic one, so one logit, their difference, with logistic noise is the same gate, and a step of Adam on both
logits is a step of twice the rate on the difference.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import masks, training
from .data import Splits
from .errors import UserError, pick
from .masks import Mask
from .models import prunable

ANNEAL = 0.8  #: the share of the steps in which a budget is reached

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
        temperature: tau of the straight-through gradient, that of sigmoid((logits + noise - threshold) / tau).
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
    """1 where ``level`` is above 0, else 0; its gradient is that of sigmoid(level / temperature)."""
    soft = torch.sigmoid(level / temperature)
    return (level > 0).to(soft) + (soft - soft.detach())


class Gates:
    """The gates of a network, on every ``Conv2d`` and ``Linear`` of it; biases have none.

    Args:
        structure: a key of ``STRUCTURES``: gates of single weights, of whole output units or channels (the last layer's always
            stay), or of whole inputs of a layer.
        temperature: tau of the gradient.
        generator: of all noise, on the CPU.
        initial: the shape of some logits -> their first values; None is 0, open half of the time.

    Raises:
        UserError: an unknown structure, a temperature that is not above 0, or a network that has gates already.
    """

    def __init__(self, model: nn.Module, structure: str = "weights", temperature: float = 1.0, generator: torch.Generator | None = None,
                 initial: Callable[[tuple[int, ...]], Tensor] | None = None):
        shape_of = pick("structure", structure, STRUCTURES)
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature is {temperature}; it must be a number above 0")
        weights = prunable(model)
        self.model, self.generator, self.shapes = model, generator or torch.Generator().manual_seed(0), {name: w.shape for name, w in weights.items()}
        self._layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
        if any(parametrize.is_parametrized(layer, "weight") for layer in self._layers.values()):
            raise UserError("the network has gates already; remove them first")
        self._plain = copy.deepcopy(model)  # whose paths can be followed
        self.gates: dict[str, Gate] = {}
        for name, layer in list(self._layers.items())[:-1 if structure == "outputs" else None]:
            shape = shape_of(weights[name].shape)
            logits = torch.zeros(shape) if initial is None else initial(shape)
            self.gates[name] = Gate(logits.to(weights[name]), temperature)
            parametrize.register_parametrization(layer, "weight", self.gates[name], unsafe=True)  # shape and type stay; saves a call of ours

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
        uniform = torch.rand(gate.logits.shape, generator=self.generator, dtype=gate.logits.dtype).clamp_(1e-7, 1 - 1e-7)
        return torch.logit(uniform).to(gate.logits.device)

    def draw(self, scale: float = 1.0, opened: int | None = None) -> None:
        """Fresh noise, times ``scale``, for the next passes; with ``opened`` exactly so many gates are open, those with the largest levels.

        The first is a Gumbel-softmax sample of every gate; the second is Gumbel's way to draw a set of given size, of gates whose
        odds are exp(logits) (a budget instead of a penalty).
        """
        for gate in self.gates.values():
            gate.noise = self._noise(gate) * scale if scale else None
        threshold = 0.0
        if opened is not None:
            with torch.no_grad():
                levels = torch.cat([gate.level().flatten() for gate in self.gates.values()])
            threshold = levels.kthvalue(len(levels) - opened).values if opened < len(levels) else levels.min() - 1
        for gate in self.gates.values():
            gate.threshold = threshold

    def rest(self) -> None:
        """No noise: from now on the network has its final topology, argmax of the paper's two logits or the last draw's number of gates."""
        for gate in self.gates.values():
            gate.noise = None

    def density(self) -> Tensor:
        """The share of open gates in a draw of its own with temperature 1, to be differentiated."""
        return sum(straight_through(gate.logits + self._noise(gate), 1.0).sum() for gate in self.gates.values()) / self.count

    @torch.no_grad()
    def mask(self, budget: int | None = None) -> Mask:
        """The final topology: the gates that are open now.

        Args:
            budget: instead, those with the largest logits and only their effective weights, as many as leave at most so many gates with an effective
                weight: of gates on weights, at most so many weights that do something.

        Raises:
            UserError: a budget that not even one path meets.
        """
        if budget is None:
            return self._opened()
        order = torch.cat([gate.logits.flatten() for gate in self.gates.values()]).sort(descending=True).values.tolist() + [-math.inf]
        opened = bisect_right(range(self.count + 1), budget, key=lambda n: self._alive(order[n])) - 1  # it grows with n
        mask = masks.effective(self._plain, self._opened(order[opened]))
        if not masks.count(mask):
            raise UserError(f"a budget of {budget} leaves no path through this network open; ask for more, or train the gates longer")
        return mask

    def _opened(self, threshold: float | None = None) -> Mask:
        opened = {name: gate.logits > (gate.threshold if threshold is None else threshold) for name, gate in self.gates.items()}
        return {name: opened[name].expand(shape).clone() if name in opened else torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items()}

    def _alive(self, threshold: float) -> int:
        """How many gates have an effective weight behind them."""
        live = masks.effective(self._plain, self._opened(threshold))
        across = {name: [d for d, n in enumerate(gate.logits.shape) if n < live[name].shape[d]] for name, gate in self.gates.items()}
        return sum(int((live[name].sum(dims) if dims else live[name]).count_nonzero()) for name, dims in across.items())

    def remove(self) -> None:
        """An ordinary network again, with the weights that were behind the gates."""
        for name in self.gates:
            parametrize.remove_parametrizations(self._layers[name], "weight", leave_parametrized=False)


def fit_penalty(model: nn.Module, gates: Gates, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor], lr: float = 0.01,
                penalty: float = 0.01, target: float = 0.0) -> list[float]:
    """Train weights and gates in place as the paper's code does: Adam on loss + ``penalty`` * |``target`` - density|, one step a batch (x, y).

    Returns:
        The loss of every step, without the penalty.
    """
    optimiser = torch.optim.Adam([{"params": gates.weights()}, {"params": gates.logits(), "lr": 2 * lr}], lr)
    losses = []
    for x, y in batches:
        gates.draw()
        now = loss(model(x), y)
        optimiser.zero_grad()
        (now + penalty * (target - gates.density()).abs()).backward()
        optimiser.step()
        losses.append(float(now.detach()))
    gates.rest()
    return losses


def fit_budget(model: nn.Module, gates: Gates, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor], steps: int, budget: int,
               lr: float = 0.005, gate_lr: float = 0.03) -> list[float]:
    """Train weights and gates in place under a budget, ours: in every step an exact number of gates is open.

    That number falls exponentially from all to ``budget`` within the first ``ANNEAL`` of the steps, and the noise with it to 0. Weights learn by Adam,
    gates by momentum; their gradients are divided by the root of *all* gates' mean square, so that a gate that matters more moves more,
    which Adam would undo. Both rates fall to 0 along a cosine.

    Args:
        batches: one (x, y) a step.

    Returns:
        The loss of every step.
    """
    if not 1 <= budget <= gates.count:
        raise UserError(f"budget is {budget}; this network has from 1 to {gates.count} gates to keep open")
    optimiser, scale, losses = torch.optim.Adam(gates.weights(), lr), None, []
    mover = torch.optim.SGD(gates.logits(), gate_lr, momentum=0.9, dampening=0.1)
    for step, (x, y) in enumerate(batches):
        progress = min(1.0, step / steps / ANNEAL)
        gates.draw(1 - progress, round(gates.count * (budget / gates.count) ** progress))
        now = loss(model(x), y)
        for each, rate in ((optimiser, lr), (mover, gate_lr)):
            each.param_groups[0]["lr"] = rate * training.DECAYS["cosine"](step, steps)
            each.zero_grad()
        now.backward()
        square = sum(p.grad.square().sum() for p in gates.logits()) / gates.count
        scale = square if scale is None else torch.lerp(square, scale, 0.99)
        for p in gates.logits():
            p.grad /= scale.sqrt() + 1e-20
        optimiser.step()
        mover.step()
        losses.append(float(now.detach()))
    gates.rest()
    return losses


def learn(model: nn.Module, splits: Splits, density: float, seed: int, *, epochs: int = 60, batch_size: int = 256, lr: float = 0.005,
          gate_lr: float = 0.03, temperature: float = 1.0, penalty: float = 0.0, structure: str = "weights") -> tuple[Mask, list[dict]]:
    """Learn weights and topology of ``model`` in place, on the cross-entropy of the training images.

    Args:
        density: the fraction of gates to stay open: of gates on weights, the mask has at most round(density * N) *effective* weights and no others.
        seed: of the gates' noise and the order of the images.
        epochs, batch_size: of this training; what is left of the network may be trained further.
        lr, gate_lr, temperature, structure: as in ``fit_budget`` and ``Gates``.
        penalty: above 0, the paper's way instead (``fit_penalty`` with ``density`` as its target, times 1 / density); the budget is met afterwards.

    Returns:
        The mask, and a row for each epoch: its mean ``loss``, how many logits are above the final threshold's level 0 (``open``), no ``events``.

    Raises:
        UserError: a budget that leaves no path, or bad input of ``Gates``.
    """
    gates = Gates(model, structure, temperature, torch.Generator().manual_seed(seed))
    recipe = training.Recipe(epochs, batch_size, seed=seed)
    steps = epochs * math.ceil(len(splits.train) / batch_size)
    batches = ((x, y) for steps_of_epoch in training.epochs(splits.train, recipe) for x, y, _ in steps_of_epoch)
    budget = max(1, round(density * gates.count))
    model.train()
    if penalty:
        losses = fit_penalty(model, gates, batches, nn.functional.cross_entropy, lr, penalty / density, density)
    else:
        losses = fit_budget(model, gates, batches, nn.functional.cross_entropy, steps, budget, lr, gate_lr)
    mask = gates.mask(budget)
    gates.remove()
    per_epoch = steps // epochs
    return mask, [{"loss": sum(part) / len(part), "events": []} for part in (losses[i:i + per_epoch] for i in range(0, steps, per_epoch))]
