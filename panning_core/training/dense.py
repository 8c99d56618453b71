"""The reference engine: PyTorch's modules and optimisers on whole weight tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..data import Split
from ..inspection import faithful, layouts
from ..masks import Mask
from ..models import prunable
from .losses import Loss, pick_loss
from .optimisers import Factory, make_optimiser
from .recipe import Recipe, Step, epochs


class Dense:
    """Trains ``model`` in place under a fixed mask.

    Args:
        optimiser, loss: as ``training.train`` takes them.
    """

    name = "dense"
    count = 1
    seconds: Sequence[float] = (0.0,)

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        recipe: Recipe,
        optimiser: str | Factory = "sgd",
        loss: str | Loss = "cross-entropy",
    ):
        self.model, self.mask, self.recipe = model, mask, recipe
        self._lay_out(layouts.fastest(model))
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
            new = (rate or 0.0) * lr / (self.recipe.lr or 1.0) if self.is_own else lr
            # A checkpoint holds no number of NumPy's.
            group["lr"] = new if isinstance(new, Tensor) else float(new)

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
            return torch.cat([self._forward(part.clone()) for part in x.split(1000)])

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        """What the network answers to images and labels; nothing is learned."""
        return faithful.ask(self.model, self.mask, x, y, self.loss)

    def store(self) -> None:
        """The model's own weights were trained; they get their usual layout back."""
        self._lay_out(torch.contiguous_format)

    def state(self) -> dict:
        """All that the next step depends on, for ``load_state``."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "buffers": dict(self.model.named_buffers()),  # a state_dict may leave some out
        }

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, buffer in self.model.named_buffers():
            buffer.copy_(state["buffers"][name])
