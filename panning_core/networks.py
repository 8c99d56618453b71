"""A trained sparse network as plain JSON, small enough to be read: what is left of its weights, and everything that is never pruned.

    python -m panning_core.networks results/paper/06_gumbel_softmax/network.json

loads one and measures it again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from . import data, masks, models, training
from .errors import UserError, command_line
from .masks import Mask
from .models import prunable


def _numbers(tensor: Tensor) -> list[float]:
    return [float(f"{v:.9g}") for v in tensor.detach().flatten().tolist()]  # nine digits are float32 to the bit


def describe(model: nn.Module, mask: Mask, name: str, dataset: str) -> dict:
    """``model``, which ``models.build`` made as ``name`` for ``dataset``, under ``mask``: plain lists and numbers.

    ``weights`` holds places in the flattened tensor and values; ``others`` holds biases and BatchNorm.
    """
    weights = prunable(model)
    places = {key: masks.places(m.flatten()) for key, m in mask.items()}
    return {"model": name, "dataset": dataset, "input_shape": list(models.input_shape(model)), "classes": next(reversed(weights.values())).shape[0],
            "weights": {key: {"places": at.tolist(), "values": _numbers(weights[key].detach().flatten()[at])} for key, at in places.items()},
            "others": {key: _numbers(t) for key, t in model.state_dict().items() if key not in weights}}


@torch.no_grad()
def rebuild(card: dict) -> tuple[nn.Module, Mask]:
    """The network and the mask of ``describe``, to the bit.

    Raises:
        UserError: something that ``describe`` has not written.
    """
    try:
        model = models.build(card["model"], tuple(card["input_shape"]), card["classes"], seed=0)
        mask = {}
        for name, weight in prunable(model).items():
            at, values = torch.tensor(card["weights"][name]["places"], dtype=torch.long), torch.tensor(card["weights"][name]["values"])
            flat = torch.zeros(weight.numel(), dtype=torch.bool)
            flat[at] = True
            if len(at) != int(flat.sum()) or bool((at < 0).any()):
                raise ValueError(f"places of {name} that are not there, or there twice")
            mask[name] = flat.view(weight.shape)
            weight.zero_().view(-1)[at] = values
        for name, tensor in model.state_dict().items():
            if name not in mask:
                tensor.copy_(torch.tensor(card["others"][name]).view(tensor.shape))
        return model, mask
    except UserError:
        raise
    except Exception as error:  # a wrong key, kind, length or place: Python and PyTorch raise many kinds
        raise UserError(f"this is not a network that was recorded here: {type(error).__name__} {error}") from error


def load(path: str | Path) -> dict:
    """The card in a file.

    Raises:
        UserError: a missing file, or one that is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable network: {error}") from error


def evaluate(card: dict, dataset: str | None = None) -> str:
    """One sentence: how many weights and biases, and the accuracy on the test images of the data set."""
    model, mask = rebuild(card)
    splits = data.load(dataset or card["dataset"])
    if splits.input_shape != tuple(card["input_shape"]) or splits.classes != card["classes"]:
        raise UserError(f"the network reads images {card['input_shape']} of {card['classes']} classes; {splits.title} has {list(splits.input_shape)} of {splits.classes}")
    model.eval()
    with torch.no_grad():
        found = training.accuracy(model(splits.test.x), splits.test.y)
    return (f"{card['model']} on {splits.title}: {masks.count(mask)} of {masks.size(mask):,} weights kept, {masks.count(masks.effective(model, mask))} effective; "
            f"test accuracy {100 * found:.2f} % (n = {len(splits.test):,} images)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m panning_core.networks", description="Measure a recorded network again.")
    parser.add_argument("file", help="a network as JSON")
    parser.add_argument("--dataset", help="another data set with images of the same shape")
    options = parser.parse_args()
    print(evaluate(load(options.file), options.dataset))
    return 0


if __name__ == "__main__":
    command_line(main)
