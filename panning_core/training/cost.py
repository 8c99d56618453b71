"""What a training costs: FLOPs by the mask of each step, to compare methods at equal cost."""

from __future__ import annotations

from torch import nn

from .. import masks
from ..errors import UserError
from ..inspection import faithful
from ..masks import Mask
from ..models import prunable, uses


class Cost:
    """FLOPs of a step of training, for each image of its batch.

    A kept weight costs 2 FLOPs (a multiply and an add) for each use by an image in each of three
    products: forward, gradient of the inputs, gradient of the weight; so a step is three times
    ``masks.flops``, the usual count (Evci et al. 2020, appendix H). A frozen weight has no third
    product. Where a method needs the gradients of pruned weights too, the third product is that
    of the dense layer. Biases, normalisation and the optimiser are left out, and so is what an
    ``update`` hook computes besides.
    """

    def __init__(self, model: nn.Module):
        self.weights = prunable(model)
        self.uses: dict[str, float] | None = None
        try:
            with faithful.untouched(model):
                self.uses = uses(model)
        except UserError:
            pass  # it does not say what it reads

    def image(self, kept: dict[str, int], dense_gradients: bool = False) -> float | None:
        """FLOPs of one image where so many weights of each tensor are kept; None for a network
        whose uses of its weights can not be counted."""
        if (times := self.uses) is None:
            return None
        return sum(
            2 * times[name] * (2 * count + self._learned(name, count, dense_gradients))
            for name, count in kept.items()
        )

    def _learned(self, name: str, count: int, dense_gradients: bool) -> int:
        weight = self.weights[name]
        if not weight.requires_grad:
            return 0
        return weight.numel() if dense_gradients else count


def kept(mask: Mask) -> dict[str, int]:
    """How many weights of each tensor are kept."""
    return {name: masks.count({name: m}) for name, m in mask.items()}
