"""What a mask is: ``{"conv1.weight": bool tensor, ...}`` with one entry for each prunable weight
tensor; True is kept.

A parameter that is not prunable is simply absent. ``Scores`` have the same keys and shapes; larger
means keep.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import layers, storage
from .datasets.archives import arrays
from .errors import UserError, fraction_kept, pick, shown
from .layers import Least
from .models import prunable, uses
from .names import Table
from .paths import on_paths

if TYPE_CHECKING:
    import pandas as pd

Mask = dict[str, Tensor]
Scores = dict[str, Tensor]
LARGEST = 2**30  #: weights of a mask in a file, a byte each
# of the sample that tells where a threshold lies; a prime, not to fall in step with the rows of a
# layer
_STRIDE = 61


def ones(model: nn.Module) -> Mask:
    """The dense mask of ``model``: everything is kept."""
    return {
        name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()
    }


def check(model: nn.Module, mask: Mask) -> None:
    """Raise a ``UserError`` that names the difference unless ``mask`` is one of ``model``'s."""
    weights = prunable(model)
    if not isinstance(mask, Mapping) or not all(isinstance(m, Tensor) for m in mask.values()):
        raise UserError(
            f"a mask is a dict from names such as {next(iter(weights))} to boolean tensors, not"
            f" {shown(mask)}"
        )
    if missing := weights.keys() - mask.keys():
        raise UserError(f"the mask is of another network: it lacks {', '.join(sorted(missing))}")
    if extra := mask.keys() - weights.keys():
        raise UserError(
            f"the mask is of another network: this one has no {', '.join(sorted(extra))}"
        )
    for name, weight in weights.items():
        if mask[name].shape != weight.shape:
            raise UserError(
                f"the mask is of another network: {name} is {tuple(mask[name].shape)} in the"
                f" mask, {tuple(weight.shape)} in the network"
            )
        if mask[name].dtype != torch.bool:
            raise UserError(f"the mask's {name} is {mask[name].dtype}; a mask is boolean")
        if mask[name].device != weight.device:
            raise UserError(
                f"the mask's {name} is on {mask[name].device} and the network on {weight.device};"
                " both must be on one device"
            )


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All layers as one vector [weights], in their order."""
    return torch.cat([t.detach().flatten() for t in tensors.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layers of a vector [weights] again: views with the names and shapes of ``like``."""
    return {
        name: part.view(t.shape)
        for (name, t), part in zip(like.items(), vector.split([t.numel() for t in like.values()]))
    }


def places(vector: Tensor) -> Tensor:
    """Where a boolean vector is True, ascending."""
    # torch.nonzero takes ten times as long.
    return torch.from_numpy(np.flatnonzero(vector.cpu().numpy())).to(vector.device)


def numbers(mask: Tensor, dtype: torch.dtype = torch.double) -> Tensor:
    """1 for what is kept and 0 for the rest. By way of int8: PyTorch converts from bool four times
    more slowly.
    """
    return mask.view(torch.int8).to(dtype)


def _check_numbers(largest: float) -> None:
    if np.isnan(largest):
        raise UserError("the scores hold NaN; a score must be a number for every weight")


def _top(values: np.ndarray, keep: int) -> np.ndarray:
    """True for exactly the ``keep`` largest of a flat array; among equals the earlier index wins.

    A sample tells about where the threshold lies, so that only what is near is searched for it
    (after Floyd & Rivest 1975).
    """
    _check_numbers(values.max(initial=-np.inf))  # NaN with a NaN anywhere
    sample = np.concatenate([[-np.inf], values[::_STRIDE], [np.inf]])
    share = keep / len(values)
    place, slack = len(sample) * (1 - share), 3 * (len(sample) * share * (1 - share)) ** 0.5 + 2
    ends = np.clip([place - slack, place + slack], 0, len(sample) - 1).astype(int)
    low, high = np.partition(sample, ends)[ends]
    chosen = values > high
    near = np.flatnonzero(chosen != (values > low))
    rest = keep - int(np.count_nonzero(chosen))
    if not 0 <= rest <= len(near):  # the sample was not like the whole, or many are equal
        chosen[:], near, rest = False, np.arange(len(values)), keep
    if rest:
        found = values[near]
        # np.partition is slow where many are equal.
        threshold = torch.from_numpy(found).kthvalue(len(found) - rest + 1).values.numpy()
        above = found > threshold
        above[np.flatnonzero(found == threshold)[: rest - np.count_nonzero(above)]] = True
        chosen[near] = above
    return chosen


def _best(part: Tensor, keep: int) -> Tensor:
    """True for exactly the ``keep`` largest of a tensor."""
    best = torch.from_numpy(_top(part.flatten().cpu().numpy(), keep))
    return best.to(part.device).view(part.shape)


def _global(
    vector: Tensor, like: Mask | Scores, density: float, least: Least | None = None
) -> Mask:
    if least:  # what stays in any case comes first
        vector = vector.clamp(max=torch.finfo(vector.dtype).max)
        for name, part in unflatten(vector, like).items():
            part[_best(part, least[name])] = torch.inf
    return unflatten(_best(vector, round(density * len(vector))), like)


def _layerwise(
    vector: Tensor, like: Mask | Scores, density: float, least: Least | None = None
) -> Mask:
    if least:
        return _shared(layers.uniform, vector, like, density, least)
    return {
        name: _best(part, round(density * part.numel()))
        for name, part in unflatten(vector, like).items()
    }


def _shared(
    share: Callable[[torch.Size], int],
    vector: Tensor,
    like: Mask | Scores,
    density: float,
    least: Least | None = None,
) -> Mask:
    parts = unflatten(vector, like)
    sizes = [part.numel() for part in parts.values()]
    counts = layers.share_out(
        round(density * len(vector)),
        [share(part.shape) for part in parts.values()],
        [least[name] if least else 0 for name in parts],
        sizes,
    )
    return {name: _best(part, count) for (name, part), count in zip(parts.items(), counts)}


def _units(vector: Tensor, like: Mask | Scores, density: float, least: Least | None = None) -> Mask:
    _check_numbers(float(vector.max()))
    parts = list(unflatten(vector, like).values())
    scores = torch.cat([part.flatten(1).sum(1) for part in parts])
    lengths = [len(part) for part in parts]
    cost = torch.cat(
        [torch.full((n,), part[0].numel(), device=vector.device) for n, part in zip(lengths, parts)]
    )
    first = torch.cat(
        [
            torch.arange(len(part), device=vector.device) == part.argmax()
            for part in scores.split(lengths)[:-1]
        ]
        + [torch.ones(lengths[-1], dtype=torch.bool, device=vector.device)]
    )
    for name, part, stays in zip(like, parts, first.split(lengths)):
        if least and 0 < least[name] < part.numel():
            raise UserError(
                "a floor counts weights, and the scope 'units' keeps whole units, the best of"
                " each layer always; leave out floor"
            )
        if least and least[name]:
            stays[:] = True
    order = torch.where(first, torch.inf, scores).argsort(descending=True, stable=True)
    room = round(density * len(vector))
    if (needed := int(cost[first].sum())) > room:
        raise UserError(
            f"density {density} keeps {room:,} weights, and the outputs and one unit of every"
            f" other layer take {needed:,}"
        )
    kept = torch.zeros_like(first)
    kept[order] = cost[order].cumsum(0) <= room
    return {
        name: rows.view(-1, *[1] * (part.dim() - 1)).expand(part.shape).clone()
        for name, part, rows in zip(like, parts, kept.split(lengths))
    }


#: how far scores are compared: (scores [weights], the layers they are of, density, what each layer
#: keeps at least) -> mask
SCOPES = Table(
    __name__ + ".SCOPES",
    {
        "global": _global,
        "layerwise": _layerwise,
        "uniform": partial(_shared, layers.uniform),
        "erk": partial(_shared, layers.erk),
        "units": _units,
    },
)


def keep_top(
    scores: Scores, density: float, scope: str = "global", least: Least | None = None
) -> Mask:
    """Keep exactly round(density * N) weights with the largest scores; ties go to the earlier
    weight in the order of the dict.

    Args:
        scope: ``"global"`` compares all weights together. ``"uniform"`` keeps the same fraction of
            every layer, and ``"erk"`` one proportional to sum / product of the layer's dimensions,
            at most all (Evci et al. 2020). ``"layerwise"`` is ``"uniform"`` with every layer
            rounded for itself, so that the sum may differ by a few weights. ``"units"`` keeps whole
            output units and channels, those with the largest sums, at most round(density * N)
            weights; the last layer's and the best of every other layer stay.
        least: how many weights each layer keeps at least, as ``layers.limits`` gives it; they count
            in ``density``.

    Raises:
        UserError: density outside [0, 1] or too small for whole units or ``least``, what is no
            scores, NaN among them, or an unknown scope.
    """
    fraction_kept(density)
    if not (
        isinstance(scores, Mapping)
        and scores
        and all(
            isinstance(s, Tensor) and s.dtype in (torch.float16, torch.float32, torch.float64)
            for s in scores.values()
        )
    ):
        raise UserError(
            "scores are a dict of float tensors (float16, float32 or float64), one for each"
            " layer; metrics.snip, for example, gives such"
        )
    keep = pick("scope", scope, SCOPES)
    if least is None:
        return keep(flatten(scores), scores, density)
    if not isinstance(least, Mapping) or least.keys() != scores.keys():
        raise UserError(
            f"least is {shown(least)}; it must be a number for each layer of the scores, as "
            "layers.limits gives it"
        )
    layers.check_room(least, density, size(scores))
    return keep(flatten(scores), scores, density, least)


def count(mask: Mask) -> int:
    """How many weights are kept."""
    # PyTorch's sum takes five times as long.
    return sum(int(np.count_nonzero(m.cpu().numpy())) for m in mask.values())


def size(mask: Mask) -> int:
    """How many weights there are, kept or not."""
    return sum(m.numel() for m in mask.values())


def density(mask: Mask) -> float:
    """Kept weights over all prunable weights, in [0, 1]."""
    return count(mask) / size(mask)


def paths(model: nn.Module, mask: Mask) -> Mask:
    """True for a kept weight that lies on a path of kept weights from an input to an output, and
    for a removed one that would join two ends of such paths (``paths.on_paths``).
    """
    check(model, mask)
    return on_paths(model, mask)


def effective(model: nn.Module, mask: Mask) -> Mask:
    """The kept weights that lie on at least one path from an input to an output through kept
    weights.
    """
    return {name: mask[name] & p for name, p in paths(model, mask).items()}


def keep_effective(model: nn.Module, scores: Scores, density: float, scope: str = "global") -> Mask:
    """Keep what is effective of the largest scores: as many of them as leave at most round(density
    * N) effective weights; -inf is never kept.

    Raises:
        UserError: as ``keep_top``, or not even one path has so few weights.
    """
    fraction_kept(density)
    total = size(scores)

    def living(n: int) -> Mask:
        try:
            top = keep_top(scores, n / total, scope)
        except UserError:  # too few for whole units
            return {}
        return effective(model, {name: m & (scores[name] > -torch.inf) for name, m in top.items()})

    # The number of living weights grows with n.
    kept = (
        bisect_right(range(total + 1), round(density * total), key=lambda n: count(living(n))) - 1
    )
    mask = living(kept)
    if not count(mask):
        raise UserError(
            f"density {density} leaves {round(density * total)} of {total:,} weights, too few for"
            " a path where these scores are largest"
        )
    return mask


def flops(model: nn.Module, mask: Mask) -> float:
    """FLOPs of one input's forward pass that are spent on kept weights: 2 for a multiply-add."""
    times = uses(model)
    return sum(2 * times[name] * count({name: m}) for name, m in mask.items())


def table(model: nn.Module, mask: Mask) -> pd.DataFrame:
    """One row a layer: kept, effective (kept on a path), density, effective_density, weights,
    shape, flops_dense, flops_nonzero.

    FLOPs are those of one input's forward pass, 2 for a multiply-add; ``flops_nonzero`` counts
    effective weights only.
    """
    import pandas as pd

    live, times = effective(model, mask), uses(model)
    rows = []
    for name, m in mask.items():
        kept, alive, total = int(m.sum()), int(live[name].sum()), m.numel()
        rows.append(
            {
                # First what matters: a narrow terminal cuts the table in the middle.
                "layer": name.removesuffix(".weight"),
                "kept": kept,
                "effective": alive,
                "density": kept / total,
                "effective_density": alive / total,
                "weights": total,
                "shape": "x".join(map(str, m.shape)),
                "flops_dense": 2 * times[name] * total,
                "flops_nonzero": 2 * times[name] * alive,
            }
        )
    return pd.DataFrame(rows)


def shuffle(mask: Mask, seed: int) -> Mask:
    """Control: the same number of kept weights in every layer, at random places."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view(m.shape)
        for name, m in mask.items()
    }


def save(mask: Mask, path: str | Path) -> None:
    """Write ``mask`` as a compressed NumPy archive; no pickle.

    Raises:
        UserError: something that is no mask, or a place that can not be written to.
    """
    if not (
        isinstance(mask, Mapping)
        and mask
        and all(isinstance(m, Tensor) and m.dtype == torch.bool for m in mask.values())
    ):
        raise UserError(f"a mask is a dict of boolean tensors, not {shown(mask)}")
    arrays_: dict[str, Any] = {name: m.cpu().numpy() for name, m in mask.items()}
    # Given a name, NumPy would append .npz to it.
    with storage.whole(path, "the mask") as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays_)


def load(path: str | Path, model: nn.Module | None = None) -> Mask:
    """Read a mask that ``save`` wrote; with ``model`` also check that it is one of that network,
    and put it where the network is.

    Raises:
        UserError: a missing or damaged file, something that is not a mask, or another network's
            mask.
    """
    try:
        mask = {name: torch.from_numpy(array) for name, array in arrays(path, LARGEST).items()}
    except Exception as error:  # as ``archives.arrays`` says
        raise UserError(f"{path} is not a readable mask: {error}") from error
    if not mask or any(m.dtype != torch.bool for m in mask.values()):
        raise UserError(f"{path} is not a mask: a mask is an archive of boolean arrays")
    if model is not None:
        mask = {name: m.to(next(iter(prunable(model).values())).device) for name, m in mask.items()}
        check(model, mask)
    return mask
