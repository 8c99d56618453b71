"""The reference engine: PyTorch's modules and optimisers on whole weight tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .. import masks
from ..data import Split
from ..errors import UserError, shown
from ..inspection import faithful
from ..masks import Mask
from ..models import prunable
from .cost import Cost, kept
from .losses import Loss, pick_loss
from .optimisers import Factory, make_optimiser
from .recipe import Recipe, Step, epochs

#: (step from 1, model, mask) -> mask
Update = Callable[[int, nn.Module, Mask], Mask]


class Dense:
    """Trains ``model`` in place under a fixed mask.

    Args:
        optimiser, loss: as ``training.train`` takes them.
    """

    name = "dense"
    #: networks, and the seconds that each took by itself
    count, seconds = 1, (0.0,)

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        recipe: Recipe,
        optimiser: str | Factory = "sgd",
        loss: str | Loss = "cross-entropy",
    ):
        self.model, self.mask, self.recipe = model, mask, recipe
        # the layout in which convolutions are fastest
        self._lay_out(torch.channels_last)
        weights = prunable(model)
        self.pruned = [(weights[name], ~m) for name, m in mask.items() if self._may_miss(m)]
        self._clear()
        self.like = next(model.parameters())
        self.loss = pick_loss(loss)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = make_optimiser(optimiser, learning, recipe)
        self.is_own = not isinstance(optimiser, str)
        self.rates = [group.get("lr") for group in self.optimiser.param_groups]

    @staticmethod
    def _may_miss(mask: Tensor) -> bool:
        """Whether a weight of the tensor is pruned, now or later."""
        return not mask.all()

    def _lay_out(self, layout: torch.memory_format) -> None:
        for parameter in self.model.parameters():
            # the layouts of others have other names
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=layout)

    @torch.no_grad()
    def _clear(self) -> None:
        for weight, gone in self.pruned:
            weight.masked_fill_(gone, 0.0)

    def images(self, x: Tensor) -> Tensor:
        """What ``step`` and ``logits`` want of the images [n, channels, height, width]."""
        return x

    def epochs(self, split: Split, drawn: torch.Generator, done: int) -> Iterator[Iterator[Step]]:
        """The batches of ``step``, as ``recipe.epochs`` draws them."""
        return epochs(split, self.recipe, drawn, done)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            self.like.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
        ):
            return self.model(x).to(self.like.dtype)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self._forward(x), y)

    def _set_rate(self, lr: float) -> None:
        """The recipe's rate for its own optimisers; groups of others keep theirs, times the factor
        of the schedule."""
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = (rate or 0.0) * lr / (self.recipe.lr or 1.0) if self.is_own else lr

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """Learns from a batch at the rate ``lr``; returns the loss before."""
        self.model.train()
        self._set_rate(lr)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(x, y)
        loss.sum().backward()
        self._descend()
        return loss.detach().double()

    def _descend(self) -> None:
        # A pruned weight starts at 0 and gets no gradient: then decay, momentum and step leave it
        # at exactly 0. Filled rather than multiplied, because 0 * inf of a diverging run would
        # bring it back as NaN.
        for weight, gone in self.pruned:
            # None where it is frozen, or of a layer that is not called
            if weight.grad is not None:
                weight.grad.masked_fill_(gone, 0.0)
        self.optimiser.step()
        # An optimiser of the user's may move a weight without a gradient.
        if self.is_own:
            self._clear()

    def logits(self, x: Tensor) -> Tensor:
        """[n, classes] in eval mode, of what ``images`` gives."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self._forward(part) for part in x.split(1000)])

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        """What the network answers to images and labels; nothing is learned."""
        return faithful.ask(self.model, self.mask, x, y, self.loss)

    def store(self) -> None:
        """The model's own weights were trained; they get their usual layout back."""
        self._lay_out(torch.contiguous_format)

    def state(self) -> dict:
        """All that the next step depends on, for ``load_state``."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


class Moving(Dense):
    """``Dense`` under a mask that a hook may change after every step; ``training.train`` states
    the rules.

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
        self.steps, self.flops, self.grew = 0, 0, False

    @staticmethod
    def _may_miss(mask: Tensor) -> bool:
        return True

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        before = self.kept
        loss = super().step(x, y, lr)
        wanted = getattr(self.update, "dense_gradients", None)
        each = self.cost.image(before, self.grew if wanted is None else wanted)
        self.flops = None if each is None else self.flops + len(y) * each
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
        self._follow(self.update(self.steps, self.model, self.mask))

    @torch.no_grad()
    def _follow(self, mask: Mask) -> None:
        """Takes over the mask that the hook has returned, or changed in place."""
        if not isinstance(mask, Mapping):
            raise UserError(
                f"update gives {shown(mask)} at step {self.steps}; it must return the mask, "
                "also where it has not changed it"
            )
        masks.check(self.model, mask)
        self.mask, self.grew = {name: mask[name] for name in self.mask}, False
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
