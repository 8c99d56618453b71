"""Whether what trains in a network's place, an engine or a smaller network, does what it does.

``altered`` finds what a copy of the layers would not do. ``ask`` has the network itself answer a
few images, and ``departure`` says where what stands in for it answers otherwise. Nothing of the
network is changed by either.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import UserError
from ..inspection import noise
from ..masks import Mask
from ..models import prunable

Loss = Callable[[Tensor, Tensor], Tensor]

#: where PyTorch keeps the hooks of a module; those of all modules are under the same names in its
#: own
HOOKS = {
    "_forward_pre_hooks": "forward-pre hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward-pre hook",
    "_backward_hooks": "backward hook",
}
#: Relative distance of two gradients that rounding makes where it puts a value on the other side of
#: a ReLU's corner: up to a thirtieth on a few images; a wrong one is farther off. Outputs, which
#: have no corners, must agree to half of their digits.
SWITCHED = 0.1
#: Share of all gradients below which one is rounding alone, as that of a bias that a batch
#: normalisation takes off again.
NOTHING = 1e-3
FEW, TIMES = 4, 3  #: images of one comparison, and how many may follow where a gradient differs


# One piece: a list of places to look at, the first find is the answer.
def altered(model: nn.Module) -> str | None:
    """What makes ``model`` do more than its classes say: a hook of any kind, or a method replaced.

    Returns:
        The first one found, in words, or None.
    """
    everywhere = torch.nn.modules.module
    for kind, words in HOOKS.items():
        if getattr(everywhere, f"_global{kind}"):
            return f"a {words} of all modules is registered"
    if "_orig_mod" in model._modules:
        return "torch.compile made it of another"
    for name, module in model.named_modules():
        where, own = name or "the network", vars(module)
        for kind, words in HOOKS.items():
            if own.get(kind):
                return f"{where} has a {words}"
        for each in own:
            if callable(getattr(type(module), each, None)):
                return f"the {each} of {where} was replaced"
        for each, parameter in own["_parameters"].items():
            if parameter is not None and _hooked(parameter):
                return f"{name}.{each} has a hook".removeprefix(".")
    return None


def _hooked(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def one_tensor(answer: object) -> Tensor:
    """``answer`` if it is a tensor.

    Raises:
        UserError: it is something else, such as the outputs of auxiliary classifiers.
    """
    if isinstance(answer, Tensor):
        return answer
    kind = type(answer).__name__
    raise UserError(
        f"in train mode the network answers with a {kind} and not with one tensor [n, classes]; "
        "build it without auxiliary outputs, or let a module around it return the logits alone"
    )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards parameters, buffers, modes and the global random state are as before.

    The network may be run in both modes. ``.grad`` stays as it is if ``torch.autograd.grad`` is
    used.
    """
    modules = [*model.modules()]
    modes, buffers = [m.training for m in modules], [dict(m._buffers) for m in modules]
    kept = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    seeded = torch.Generator().manual_seed(0)
    try:
        with noise.drawn_from(seeded, next(model.parameters()).device):
            yield
    finally:
        for module, training, own in zip(modules, modes, buffers):
            vars(module)["training"] = training
            module._buffers.clear()  # a forward may have put another tensor there
            module._buffers.update(own)
        for tensor, before in kept:
            tensor.data.copy_(before)


class Answer(NamedTuple):
    """What a network answers to a few images."""

    logits: Tensor  #: in train mode
    settled: Tensor  #: logits in eval mode
    gradients: dict[str, Tensor]  #: of each parameter that is not frozen; 0 at a pruned weight


def ask(model: nn.Module, mask: Mask, x: Tensor, y: Tensor, loss: Loss = cross_entropy) -> Answer:
    """What ``model`` itself, its pruned weights 0, answers to images and labels; it stays as it
    was.

    Args:
        loss: (logits in train mode, labels) -> what the gradients are of.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # On CUDA convolutions are rounded to ten bits unless this is said.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with untouched(model), torch.enable_grad(), exact, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network says them when it is trained
        for name, weight in prunable(model).items():
            weight.data.masked_fill_(~mask[name], 0.0)
        model.eval()
        with torch.no_grad():
            settled = model(x.clone()).detach().clone()
        model.train()
        logits = one_tensor(model(x.clone()))
        found = torch.autograd.grad(loss(logits, y), list(trained.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(p)
        if g is None
        else g.masked_fill(~mask[name], 0.0)
        if name in mask
        else g
        for (name, p), g in zip(trained.items(), found)
    }
    return Answer(logits.detach(), settled, gradients)


def departure(
    model: nn.Module,
    mask: Mask,
    x: Tensor,
    y: Tensor,
    answer: Callable[[Tensor, Tensor], Answer],
    loss: Loss = cross_entropy,
) -> str | None:
    """In which part what stands in for ``model`` differs from it on a few of the images; None if in
    none.

    Args:
        x, y: images and labels to choose from.
        answer: that of what stands in, to images and labels.
        loss: what the gradients of ``model`` are of.
    """
    step, part = max(1, len(x) // FEW), None
    for first in range(min(TIMES, step)):
        few = x[first::step][:FEW], y[first::step][:FEW]
        part = difference(ask(model, mask, *few, loss), answer(*few))
        if part is None or part.startswith("output"):  # outputs have no corners
            break
    return part


def difference(own: Answer, other: Answer) -> str | None:
    """The part of ``other`` that is farthest from that of ``own``, in words; None if all are near.

    Where ``own`` is not finite nothing is compared.
    """
    pairs = {
        "output in train mode": (own.logits, other.logits),
        "output in eval mode": (own.settled, other.settled),
    }
    gradients = {f"gradient of {n}": (g, other.gradients[n]) for n, g in own.gradients.items()}
    norms = {part: _norm(one) for part, (one, _) in (pairs | gradients).items()}
    if not all(map(math.isfinite, norms.values())):
        return None
    rounding = torch.finfo(own.logits.dtype).eps ** 0.5
    least = NOTHING * math.hypot(*(norms[part] for part in gradients))
    allowed = {part: rounding * norms[part] for part in pairs}
    allowed |= {part: SWITCHED * max(norms[part], least) for part in gradients}
    excess = {part: _gap(*pair) - allowed[part] for part, pair in (pairs | gradients).items()}
    where = max(excess, key=lambda part: excess[part] / (norms[part] or 1.0))
    return where if excess[where] > 0 else None


def _gap(one: Tensor, other: Tensor) -> float:
    gap = _norm(one - other) if one.shape == other.shape else math.inf
    return gap if math.isfinite(gap) else math.inf


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.double))
