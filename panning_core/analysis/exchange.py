"""Masks and masked networks from and for other programs. Nothing by pickle.

====================  ====================================  =====================================
format                out                                   in
====================  ====================================  =====================================
NumPy archive         ``write(mask, "m.npz")``              ``read(model, "m.npz")``
safetensors           ``write(tensors, "m.safetensors")``   ``read(model, "m.safetensors")``
float masks           ``floats(mask)``                      ``read(model, tensors)``
``weight_mask``       ``weight_masks(mask)``                ``read(model, state_dict)``
torch.nn.utils.prune  ``custom_from_mask(model, mask)``     ``read(fresh, pruned.state_dict())``
plain state dict      ``zeros(model, mask)``
ONNX                  ``save_onnx(model, mask, "m.onnx")``
====================  ====================================  =====================================
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .. import compaction, masks, storage
from ..datasets import archives
from ..errors import UserError, first_line, shown
from ..masks import Mask
from ..models import input_shape, modes, prunable

#: what such a file holds is run when it is read
PICKLES = (
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".pkl",
    ".pickle",
)


# --- in -------------------------------------------------------------------------------------------


def read(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> Mask:
    """A mask of ``model`` from a file or a dict of tensors.

    Args:
        source: a ``.npz`` or ``.safetensors`` file, or a dict, with booleans or the numbers 0 and 1
            by the names of the weights; or a state dict of ``torch.nn.utils.prune``, with
            ``conv1.weight_mask`` beside other entries: a layer that it does not mask is whole.

    Raises:
        UserError: a file that is damaged or a pickle, other numbers, or another network's mask.
    """
    tensors = source if isinstance(source, Mapping) else _tensors(Path(source))
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise UserError(
            f"a mask is a dict from names such as {next(iter(prunable(model)))} to tensors, not "
            f"{shown(source)}"
        )
    weights = prunable(model)
    if masked := {name: tensor for name, tensor in tensors.items() if name.endswith("_mask")}:
        tensors = _of_state(masked, weights)
    device = next(iter(weights.values())).device
    mask = {name: _boolean(name, tensor).to(device) for name, tensor in tensors.items()}
    masks.check(model, mask)
    return {name: mask[name] for name in weights}


def _of_state(masked: dict[str, Tensor], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The masks of ``torch.nn.utils.prune``, whole for the layers that it does not mask."""
    if foreign := masked.keys() - {f"{name}_mask" for name in weights}:
        raise UserError(
            f"{sorted(foreign)[0]} is of no weight that is pruned here; these are "
            f"{', '.join(weights)}"
        )
    return {
        name: masked.get(f"{name}_mask", torch.ones_like(w, dtype=torch.bool))
        for name, w in weights.items()
    }


def _boolean(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise UserError(f"{name} of a mask is {shown(tensor)}; it must be a tensor")
    if tensor.dtype == torch.bool:
        return tensor
    try:
        numbers = tensor.detach().double()
    except Exception as error:  # of a type that only names bits
        raise UserError(
            f"{name} of a mask is {tensor.dtype}; it must be boolean, or the numbers 0 and 1"
        ) from error
    kept = numbers == 1
    if other := numbers[~kept & (numbers != 0)].flatten()[:1].tolist():
        raise UserError(f"{name} is no mask: it holds {other[0]:.6g}, and a mask holds 0 and 1")
    return kept


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can do anything when it is read; read it yourself with "
            "torch.load(path, weights_only=True) and pass the dict"
        )
    try:
        if path.suffix == ".safetensors":
            if path.stat().st_size > masks.LARGEST:
                raise ValueError("it is too large")
            return _safetensors().load_file(path)
        return {
            name: torch.from_numpy(array)
            for name, array in archives.arrays(path, masks.LARGEST).items()
        }
    except UserError:
        raise
    except (
        Exception
    ) as error:  # of many kinds: those of the reader, and as ``archives.arrays`` says
        raise UserError(f"{path} is not a readable mask: {' '.join(str(error).split())}") from error


def _safetensors():
    try:
        from safetensors import torch as found
    except ImportError:
        raise UserError("this needs the package safetensors; install requirements.txt") from None
    return found


# --- out ------------------------------------------------------------------------------------------


def floats(mask: Mask, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """1 for what is kept and 0 for the rest, by the names of the weights."""
    return {name: m.to(dtype) for name, m in mask.items()}


def weight_masks(mask: Mask) -> dict[str, Tensor]:
    """The same by the names that ``torch.nn.utils.prune`` gives them in a state dict:
    ``conv1.weight_mask``."""
    return {f"{name}_mask": m for name, m in floats(mask).items()}


def zeros(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """The state dict of ``model`` with 0 for every pruned weight: any program that knows the
    network can load it."""
    masks.check(model, mask)
    state = {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
    own = prunable(model)
    # A tensor that layers share has several names.
    for name, value in model.state_dict(keep_vars=True).items():
        for weight, m in mask.items():
            if value is own[weight]:
                state[name][~m] = 0.0
    return state


def write(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a mask or any other dict of tensors: a ``.safetensors`` file, or a ``.npz`` one.

    Raises:
        UserError: another ending, what is no dict of tensors, or a place that can not be written
            to.
    """
    path = Path(path)
    if not (
        isinstance(tensors, Mapping)
        and tensors
        and all(isinstance(t, Tensor) for t in tensors.values())
    ):
        raise UserError(f"what is written is a dict of tensors, not {shown(tensors)}")
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path} must end in .safetensors or .npz")
    alone = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        with storage.whole(path, "the tensors") as part:
            if path.suffix == ".safetensors":
                _safetensors().save_file(alone, part)
            else:
                with open(part, "wb") as file:
                    np.savez_compressed(file, **{name: t.numpy() for name, t in alone.items()})
    except UserError:
        raise
    except Exception as error:  # the writers raise many kinds
        raise UserError(storage.refused(path, "the tensors", error)) from error


def custom_from_mask(model: nn.Module, mask: Mask) -> None:
    """``torch.nn.utils.prune.custom_from_mask`` on every layer of ``model``, in place.

    Raises:
        UserError: a mask of another network, or a weight that several layers share, which that
            function would part.
    """
    masks.check(model, mask)
    weights = prunable(model)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for name in weights:
        if shared := [
            other
            for other in names
            if other != name and model.get_parameter(other) is weights[name]
        ]:
            raise UserError(
                f"{name} is {shared[0]} too, and torch.nn.utils.prune would part them; use "
                "exchange.zeros"
            )
    for name, m in mask.items():
        path, _, leaf = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), leaf, m)


def save_onnx(model: nn.Module, mask: Mask, path: str | Path, compact: bool = False) -> None:
    """Write ``model`` under ``mask``, in eval mode, as an ONNX file: ``input`` [batch, ...] to
    ``output``; the model is only read.

    Args:
        compact: without its dead units, where ``compaction.compact`` can read the network; else
            pruned weights are zeros.

    Raises:
        UserError: a mask of another network, a network that compaction or ONNX has no words for, or
            a place that can not be written to.
    """
    masks.check(model, mask)
    parent = Path(path).resolve().parent
    if not os.access(parent, os.W_OK):
        raise UserError(f"{path} can not be written: {parent} is no folder that can be written to")
    if compact:
        network = compaction.compact(model, mask).model
    else:
        network = copy.deepcopy(model)
        network.load_state_dict(zeros(model, mask))
    like = next(network.parameters())
    x = torch.zeros((2, *input_shape(model)), dtype=like.dtype, device=like.device)
    try:
        with storage.whole(path, "the network") as part, modes(network, training=False):
            torch.onnx.export(
                network,
                (x,),
                part,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"ONNX needs the packages onnx and onnxscript ({error}); install requirements.txt"
        ) from error
    except Exception as error:  # the exporter raises many kinds
        raise UserError(
            f"ONNX has no words for this {type(model).__name__}: {first_line(error)}"
        ) from error
