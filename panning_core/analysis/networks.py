"""A trained sparse network as plain JSON, small enough to be read: what is left of its weights, and
everything that is never pruned.

    python -m panning_core network results/paper/06_gumbel_softmax/network.json

loads one and measures it again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import data, masks, models, training
from ..errors import UserError
from ..masks import Mask
from ..models import prunable

LARGEST = 50_000_000  #: weights of a network that a file can ask for


def _numbers(tensor: Tensor) -> list[float | None]:
    """Nine digits are float32 to the bit; JSON has no number for what is not finite."""
    return [
        float(f"{v:.9g}") if math.isfinite(v) else None for v in tensor.detach().flatten().tolist()
    ]


def _read(values: list, kinds: tuple[type, ...], length: int) -> Tensor:
    if (
        type(values) is not list
        or len(values) != length
        or not {type(v) for v in values} <= set(kinds)
    ):
        raise ValueError(f"not a list of {length} numbers")
    return torch.tensor(values, dtype=torch.long if kinds == (int,) else torch.float32)


def describe(model: nn.Module, mask: Mask, name: str, dataset: str) -> dict:
    """``model``, which ``models.build`` made as ``name`` for ``dataset``, under ``mask``: plain
    lists and numbers.

    ``weights`` holds places in the flattened tensor and values; ``others`` holds biases and
    BatchNorm.
    """
    weights = prunable(model)
    places = {key: masks.places(m.flatten()) for key, m in mask.items()}
    return {
        "model": name,
        "dataset": dataset,
        "input_shape": list(models.input_shape(model)),
        "classes": next(reversed(weights.values())).shape[0],
        "weights": {
            key: {"places": at.tolist(), "values": _numbers(weights[key].detach().flatten()[at])}
            for key, at in places.items()
        },
        "others": {key: _numbers(t) for key, t in model.state_dict().items() if key not in weights},
    }


@torch.no_grad()
def rebuild(card: dict) -> tuple[nn.Module, Mask]:
    """The network and the mask of ``describe``, to the bit.

    Raises:
        UserError: something that ``describe`` has not written.
    """
    try:
        asked = card["model"], tuple(card["input_shape"]), card["classes"]
        with torch.device("meta"):  # where weights take no memory
            if (
                count := sum(w.numel() for w in prunable(models.build(*asked, seed=0)).values())
            ) > LARGEST:
                raise ValueError(f"it would have {count:,} weights")
        model = models.build(*asked, seed=0)
        mask = {}
        for name, weight in prunable(model).items():
            left = card["weights"][name]
            at = _read(left["places"], (int,), len(left["places"]))
            flat = torch.zeros(weight.numel(), dtype=torch.bool)
            flat[at] = True
            if len(at) != int(flat.sum()) or bool((at < 0).any()):
                raise ValueError(f"places of {name} that are not there, or there twice")
            mask[name] = flat.view(weight.shape)
            weight.zero_().view(-1)[at] = _read(left["values"], (int, float), len(at))
        for name, tensor in model.state_dict().items():
            if name not in mask:
                tensor.copy_(
                    _read(card["others"][name], (int, float), tensor.numel()).view(tensor.shape)
                )
        return model, mask
    except Exception as error:
        # A wrong key, kind, length or place: Python and PyTorch raise many kinds.
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"this is not a network that was recorded here: {kind}{error}") from error


def load(path: str | Path) -> dict:
    """The card in a file.

    Raises:
        UserError: a missing file, or one that is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a readable network: {error}; a network is JSON that networks.describe"
            " gave"
        ) from error


def evaluate(card: dict, dataset: str | None = None) -> str:
    """One sentence: how many weights and biases, and the accuracy on the test images of the data
    set.
    """
    model, mask = rebuild(card)
    if not isinstance(name := card.get("dataset") if dataset is None else dataset, str):
        raise UserError(
            "this is not a network that was recorded here: it names no data set; use --dataset"
        )
    splits = data.load(name)
    if splits.input_shape != tuple(card["input_shape"]) or splits.classes != card["classes"]:
        raise UserError(
            f"the network reads images {card['input_shape']} of {card['classes']} classes;"
            f" {splits.title} has {list(splits.input_shape)} of {splits.classes}"
        )
    model.eval()
    with torch.no_grad():
        found = training.accuracy(model(splits.test.x), splits.test.y)
    return (
        f"{card['model']} on {splits.title}: {masks.count(mask)} of {masks.size(mask):,} weights"
        f" kept, {masks.count(masks.effective(model, mask))} effective; test accuracy"
        f" {100 * found:.2f} % (n = {len(splits.test):,} images)"
    )
