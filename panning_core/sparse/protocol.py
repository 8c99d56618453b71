"""What the rest of the package knows of the fast engine; nothing else of this folder is used."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..inspection import faithful


class Engine(Protocol):
    """Trains one network with its pruned weights at 0, by SGD on the mean cross-entropy.

    It is made of a network and a mask, and works on numbers of its own; the network changes in
    ``store`` alone. Images are [n, channels, height, width] or what ``pixels`` made of them,
    float32; labels are [n] int64.
    """

    def pixels(self, x: Tensor) -> Tensor:
        """[n, pixels]: of images what the network reads. Worth doing once for a data set."""

    def reads_pixels(self) -> bool:
        """Whether the network begins with a ``Linear``, which reads some pixels and others not."""

    def step(
        self,
        x: Tensor,
        y: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
    ) -> float:
        """One step as ``torch.optim.SGD`` makes it; returns the mean loss before the step."""

    def logits(self, x: Tensor) -> Tensor:
        """[n, classes], batch normalisation with its running statistics."""

    def flow(self, x: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, float]:
        """The gradient flow on a batch, in train mode; nothing is learned, and running statistics
        stay as they are.

        Args:
            temperature: divides the logits in the loss.

        Returns:
            The logits [n, classes], not divided, and the squared norm of the gradient of the loss
            with respect to the surviving weights, without biases and batch normalisation; summed
            in float64.
        """

    def answer(self, x: Tensor, y: Tensor) -> faithful.Answer:
        """What the network answers to images and labels; nothing is learned."""

    def store(self) -> None:
        """Writes everything learned into the network; a pruned weight becomes exactly 0."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, as copies."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from what ``state`` gave."""
