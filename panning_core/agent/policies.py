"""What a trained agent is, once it is deployed: the weights of its actor, and a card that says
where they come from.

A policy file is a NumPy archive of plain arrays and one JSON text. Nothing in it is executed: there
is no pickle, and what is read is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from .. import results, storage
from ..agent.observations import FIRST, MIXED, OBSERVED, Look
from ..datasets import archives
from ..errors import UserError, unknown
from ..models import fingerprint

#: what an agent sees [7] -> what it does [3], each in [-1, 1]
Policy = Callable[[np.ndarray], np.ndarray]
SEEN, DONE = len(OBSERVED), len(MIXED)
#: comes with the package; another one that replaces it gets another name, because results are
#: recorded under it
SHIPPED = "general-1"
FOLDER = Path(__file__).parent / "trained"
LARGEST = 50_000_000  #: bytes that a file may unpack to
CARD = {
    "trained_on": list,
    "steps": int,
    "seed": int,
    "seconds": float,
    "training": dict,
    "versions": dict,
}  #: what a card says, at least


@dataclass(frozen=True)
class Actor:
    """A deterministic policy: a multilayer perceptron, ReLU inside and tanh at the end.

    Attributes:
        layers: weight [out, in] and bias [out] of each layer, float32.
        card: ``trained_on`` (networks and data), ``steps`` of the environment, ``seconds``,
            ``seed``, ``training`` (every setting) and ``versions``.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    card: dict

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        x = np.asarray(observation, dtype=np.float32)
        for weight, bias in self.layers[:-1]:
            x = np.maximum(weight @ x + bias, 0)
        weight, bias = self.layers[-1]
        return np.tanh(weight @ x + bias)

    @property
    def departures(self) -> tuple[str, ...]:
        """Of the environment that it was trained in, keys of ``observations.DEPARTURES``."""
        return tuple(self.card["training"].get("departures", FIRST))

    def known(self, model: nn.Module) -> list[Look]:
        """The extremes that it was trained to read, if it was trained on this very network."""
        same = "network" in self.card and self.card["network"] == fingerprint(model)
        return [Look(*look) for look in self.card["extremes"]] if same else []

    def digest(self) -> str:
        """SHA-256 of the weights, 12 hex digits."""
        return hashlib.sha256(
            b"".join(a.tobytes() for layer in self.layers for a in layer)
        ).hexdigest()[:12]

    def save(self, path: str | Path) -> None:
        """Write a file that ``load`` reads.

        Raises:
            UserError: a place that can not be written to.
        """
        card = json.dumps({**self.card, "digest": self.digest()}, sort_keys=True)
        arrays = {
            f"{kind}{i}": a
            for i, layer in enumerate(self.layers)
            for kind, a in zip(("weight", "bias"), layer)
        }
        with storage.whole(path, "the policy") as part, open(part, "wb") as file:
            np.savez_compressed(file, card=np.frombuffer(card.encode(), np.uint8), **arrays)


class Random:
    """The control that every agent has to beat: a uniform action every round."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return self.generator.uniform(-1, 1, DONE)


def places() -> dict[str, Path]:
    """Name -> file of every policy there is: those of the package and those that a study has
    trained (``results()/PROFILE/STUDY/policies``).
    """
    trained = results().glob("*/*/policies/*.npz")
    return {path.stem: path for path in [*sorted(trained), *sorted(FOLDER.glob("*.npz"))]}


def load(policy: str | Path) -> Actor:
    """The policy with this name (a key of ``places()``), or in this file.

    Raises:
        UserError: an unknown name, or a file that is missing, damaged or something else.
    """
    path = (
        Path(policy)
        if isinstance(policy, Path) or str(policy).endswith(".npz")
        else places().get(str(policy))
    )
    if path is None:
        raise unknown("policy", policy, places())
    try:
        arrays = archives.arrays(path, LARGEST)
        card = json.loads(arrays.pop("card").tobytes().decode())
        actor = Actor(
            _layers(arrays), {name: value for name, value in card.items() if name != "digest"}
        )
        if wrong := [name for name, kind in CARD.items() if not isinstance(card.get(name), kind)]:
            raise ValueError(f"its card lacks {', '.join(wrong)}")
        if card.get("digest") != actor.digest():
            raise ValueError("its weights are not those of its card")
    except Exception as error:  # as ``archives.arrays`` says, and json's
        raise UserError(
            f"{path} is not a policy: {error}; a policy is a file that Actor.save wrote"
        ) from error
    return actor


def _layers(arrays: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The arrays of a file as layers; raises ValueError where they are not a network from ``SEEN``
    to ``DONE`` numbers.
    """
    count = len(arrays) // 2
    if (
        set(arrays) != {f"{kind}{i}" for i in range(count) for kind in ("weight", "bias")}
        or not count
    ):
        raise ValueError(f"it holds {', '.join(sorted(arrays)) or 'no arrays'}")
    layers = tuple((arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(count))
    width = SEEN
    for weight, bias in layers:
        _check_layer(weight, bias, width)
        width = len(weight)
    if width != DONE:
        raise ValueError(f"it answers with {width} numbers instead of {DONE}")
    return layers


def _check_layer(weight: np.ndarray, bias: np.ndarray, width: int) -> None:
    """Raise a ValueError unless this is a layer of ``width`` inputs."""
    if (
        weight.ndim != 2
        or bias.shape != weight.shape[:1]
        or weight.shape[1] != width
        or {weight.dtype, bias.dtype} != {np.dtype(np.float32)}
    ):
        raise ValueError(
            f"a layer is {weight.dtype} {weight.shape} and {bias.dtype} {bias.shape} where"
            f" {width} numbers come in"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError("not all of its weights are finite")
