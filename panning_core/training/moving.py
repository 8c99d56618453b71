"""The dense engine under a mask that changes while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import masks
from ..errors import UserError, shown
from ..masks import Mask
from .cost import Cost, kept
from .dense import Dense
from .losses import Loss
from .optimisers import Factory
from .recipe import Recipe


class Update(Protocol):
    """A hook that may change the mask, called after each step of the optimiser.

    The rules:

    - ``.grad`` of every weight holds the gradient of this step's loss at the weights before the
      step, also of weights that are pruned; the optimiser has seen it with those set to 0.
    - A weight outside the returned mask is exactly 0 afterwards. One that enters begins at 0, or
      at what the hook has written there.
    - Momentum, and all else that the optimiser keeps with the shape of the weights, becomes 0 for
      a weight that enters or leaves. One that the hook removes and regrows in the same call stays
      as it was, value and momentum; what the hook writes into it stays.
    - Autograd is on, and the network is in train mode. What the hook draws from PyTorch's global
      random state follows from the recipe's seed.
    - A step that lets weights in is counted with the gradients of all weights (``Cost``), because
      growth by gradient needs them. An attribute ``dense_gradients`` of the hook says otherwise:
      True for every step, as for a hook that averages gradients, False for none, as for growth at
      random.
    - Several masks in a list are taken over one after another: what one of them removes and the
      next lets in begins at 0.
    - A hook with a state of its own offers ``state_dict()`` and ``load_state_dict(state)``, plain
      values and tensors, if it is to be resumed from a checkpoint.
    """

    def __call__(self, step: int, model: nn.Module, mask: Mask) -> Mask | list[Mask]:
        """The mask that holds from now on: ``mask``, changed in place or not, or another one.

        Args:
            step: of the training, from 1.
            model: the network that is trained, the one that ``train`` was given.
        """


class Moving(Dense):
    """``Dense`` under a mask that a hook may change after every step, by the rules of ``Update``.

    Attributes:
        mask: the present one.
        flops: of the training so far, None where they can not be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        recipe: Recipe,
        update: Update,
        optimiser: str | Factory = "sgd",
        loss: str | Loss = "cross-entropy",
    ):
        own = {name: m.clone() for name, m in mask.items()}
        super().__init__(model, own, recipe, optimiser, loss)
        self.update, self.cost, self.kept = update, Cost(model), kept(mask)
        self.steps, self.grew = 0, False
        self.flops: int | None = 0

    @staticmethod
    def _may_miss(mask: Tensor) -> bool:
        return True

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        before = self.kept
        loss = super().step(x, y, lr)
        wanted = getattr(self.update, "dense_gradients", None)
        each = self.cost.image(before, self.grew if wanted is None else wanted)
        if each is None or self.flops is None:
            self.flops = None
        else:
            self.flops += len(y) * each
        return loss

    def _descend(self) -> None:
        gradients = [weight.grad for weight, _ in self.pruned]
        for weight, gone in self.pruned:
            if weight.grad is not None:
                weight.grad = weight.grad.masked_fill(gone, 0.0)
        self.optimiser.step()
        self._clear()
        # The hook sees the gradients of pruned weights too.
        for (weight, _), gradient in zip(self.pruned, gradients):
            weight.grad = gradient
        self.steps += 1
        self.grew = False
        found = self.update(self.steps, self.model, self.mask)
        for mask in found if found and isinstance(found, list) else [found]:
            self._follow(mask)

    @torch.no_grad()
    def _follow(self, mask: Mask) -> None:
        """Takes over the mask that the hook has returned, or changed in place."""
        if not isinstance(mask, Mapping):
            raise UserError(
                f"update gives {shown(mask)} at step {self.steps}; it must return the mask, "
                "also where it has not changed it"
            )
        masks.check(self.model, mask)
        self.mask = {name: mask[name] for name in self.mask}
        for m, (weight, gone) in zip(self.mask.values(), self.pruned):
            changed = m == gone
            if changed.any():
                self.grew = self.grew or bool((changed & gone).any())
                gone.copy_(~m)
                for tensor in self.optimiser.state.get(weight, {}).values():
                    if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                        tensor.masked_fill_(changed, 0.0)
                self.kept = kept(self.mask)
        self._clear()

    def state(self) -> dict:
        own = getattr(self.update, "state_dict", dict)
        return super().state() | {
            "mask": self.mask,
            "steps": self.steps,
            "flops": self.flops,
            "update": own(),
        }

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.steps, self.flops = state["steps"], state["flops"]
        self.mask = {name: state["mask"][name].to(m.device) for name, m in self.mask.items()}
        self.kept = kept(self.mask)
        for m, (_, gone) in zip(self.mask.values(), self.pruned):
            gone.copy_(~m)
        if hasattr(self.update, "load_state_dict"):
            self.update.load_state_dict(state["update"])
