"""One short pure function per metric: (model, mask, batch) -> one score for each prunable weight;
larger = keep.

Pure: afterwards the weights, the mode, BatchNorm's statistics, every ``.grad`` and the global
random state are as before. Each function takes

- ``model``: its current weights are the *dense* weights theta;
- ``mask``: the sub-network theta * M that is scored;
- ``batch``: (x [n, c, h, w], y [n]); a metric that needs no data takes shape and device from it;
- ``generator``: source of noise for a metric, or a network, that draws some.

A new metric is one function and one entry in ``METRICS``; every study, the test battery and the
benchmarks then see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import graph, masks
from .errors import UserError, first_line
from .inspection import layouts, noise, twice
from .inspection.batches import check_batch
from .inspection.faithful import one_tensor
from .inspection.noise import apart, made_of
from .masks import Mask, Scores, flatten, numbers, places, unflatten
from .models import linearised, modes, prunable
from .names import Table
from .paths import activations

Batch = tuple[Tensor, Tensor]
TEMPERATURE = (
    200.0  #: divides the logits in the GraSP family and inside Panning (the authors' code)
)


def check(model: nn.Module, mask: Mask, batch: Batch) -> None:
    """Raise a ``UserError`` unless ``mask`` is one of ``model``'s and ``batch`` is images and
    labels for it.
    """
    masks.check(model, mask)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError(
            "a batch is a pair (images, labels), such as data.balanced_batch gives, not"
            f" {type(batch).__name__}"
        )
    check_batch(model, *batch)


def _checked(score: Callable) -> Callable:
    """``score`` of (model, mask, batch, ...), with a sentence for bad input; that is looked for
    when it has failed, so that it costs nothing.
    """

    @wraps(score)
    def checked(model: nn.Module, mask: Mask, batch: Batch, *others, **options):
        try:
            return score(model, mask, batch, *others, **options)
        except Exception as error:
            if not isinstance(error, UserError):
                check(model, mask, batch)
            if isinstance(error, RuntimeError | ValueError) and not isinstance(error, UserError):
                raise UserError(
                    f"{score.__name__} can not be computed on this {type(model).__name__} and "
                    f"batch: {first_line(error)}"
                ) from error
            raise

    return checked


@contextmanager
def _subnetwork(
    model: nn.Module,
    mask: Mask,
    generator: torch.Generator | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    again: bool = False,
) -> Iterator[tuple[Callable[..., Tensor], list[Tensor]]]:
    """The network theta * M as (forward, leaves): a function, which takes other parameters too, and
    the masked weights to differentiate by; train mode, own BN buffers, and float32 in place of
    float16 and bfloat16. What it draws itself, as dropout does, follows from ``generator``, which
    moves on then. With ``again`` it can be differentiated twice."""
    theta = {name: _wide(w) for name, w in prunable(model).items()}
    leaves = {name: w * numbers(mask[name], w.dtype) for name, w in theta.items()}
    leaves = {
        name: (w.to(memory_format=layout) if w.dim() == 4 else w).requires_grad_()
        for name, w in leaves.items()
    }
    state = {
        **{name: _wide(p) for name, p in model.named_parameters()},
        **{name: _wide(b.clone()) for name, b in model.named_buffers()},
        **leaves,
    }
    generator, device = (
        generator or torch.Generator().manual_seed(0),
        next(iter(leaves.values())).device,
    )
    parallel = isinstance(model, nn.DataParallel)  # which takes no other parameters than its own

    def forward(x: Tensor, others: dict[str, Tensor] = {}) -> Tensor:
        tensors = {**state, **others}
        if parallel:
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        inner = model.module if isinstance(model, nn.DataParallel) else model
        return one_tensor(functional_call(inner, tensors, _wide(x).clone()))

    with (
        modes(model, training=True),
        torch.enable_grad(),
        noise.drawn_from(generator, device),
        graph.eager(model),
        activations.kept(),
        twice.differentiable(model) if again else nullcontext(),
        sdpa_kernel(SDPBackend.MATH),  # the one that can be differentiated twice
    ):
        yield forward, list(leaves.values())


def _wide(t: Tensor) -> Tensor:
    """In float32 what is float16 or bfloat16: products in these tie where it matters."""
    return t.detach().float() if t.dtype in (torch.float16, torch.bfloat16) else t.detach()


def _gradient(of: Tensor, leaves: list[Tensor], **how) -> tuple[Tensor, ...]:
    """0 for a weight that has no part in it, such as that of a layer that is not called."""
    return torch.autograd.grad(of, leaves, allow_unused=True, materialize_grads=True, **how)


@_checked
def loss(model: nn.Module, mask: Mask, batch: Batch) -> float:
    """Cross-entropy of the sub-network theta * M on the batch, in train mode."""
    with _subnetwork(model, mask) as (forward, _), torch.no_grad():
        return float(nn.functional.cross_entropy(forward(batch[0]), batch[1]))


class Products(NamedTuple):
    """Signed products with the dense weights, and what they come from."""

    snip: Scores  #: theta * g
    grasp: Scores  #: theta * Hg; empty unless asked for
    loss: float  #: cross-entropy on the batch, float64
    gtg: float  #: g . g over the kept weights: the sub-network's gradient flow


@_checked
def products(
    model: nn.Module,
    mask: Mask,
    batch: Batch,
    temperature: float = 1.0,
    hessian: bool = False,
    generator: torch.Generator | None = None,
) -> Products:
    """theta * g and, with ``hessian``, theta * Hg, of the sub-network theta * M, logits divided by
    ``temperature``.

    g is the gradient of the mean cross-entropy with respect to every prunable weight, kept or not;
    Hg is the Hessian times the kept weights' part of g, by double backward: the derivative of g .
    stop(g M).
    """
    x, y = batch
    theta = {name: _wide(w) for name, w in prunable(model).items()}
    with _subnetwork(model, mask, generator, again=hessian) as (forward, leaves):
        logits = forward(x) / temperature
        gradient = _gradient(nn.functional.cross_entropy(logits, y), leaves, create_graph=hessian)
        flow = [g.detach() * numbers(mask[name], g.dtype) for name, g in zip(theta, gradient)]
        gtg = sum(((g * f).sum() for g, f in zip(gradient, flow)), logits.new_zeros(()))
        curvature = _gradient(gtg, leaves) if hessian else ()
    # First what needs the flow in float64, so that it is not there beside the products.
    squared = sum(float(f @ f) for f in (part.double().flatten() for part in flow))
    return Products(
        {name: theta[name] * g.detach() for name, g in zip(theta, gradient)},
        {name: theta[name] * h for name, h in zip(theta, curvature)},
        float(nn.functional.cross_entropy(logits.detach().double(), y)),
        squared,
    )


def gradient_flow(
    model: nn.Module, mask: Mask, batch: Batch, temperature: float = 1.0, kept_only: bool = True
) -> tuple[Tensor, float]:
    """The logits [n, classes] of the sub-network theta * M, and g . g over its kept weights
    (``gtg`` of ``products`` without the products) or over all.
    """
    x, y = batch
    # The products keep another layout, because their committed masks hang on the last bit.
    with _subnetwork(model, mask, layout=layouts.fastest(model)) as (forward, leaves):
        logits = forward(x)
        gradient = _gradient(nn.functional.cross_entropy(logits / temperature, y), leaves)
    counted = (
        g.double() * numbers(mask[name]) if kept_only else g.double()
        for name, g in zip(prunable(model), gradient)
    )
    return logits.detach(), sum(float(g.square().sum()) for g in counted)


@_checked
def synflow_products(model: nn.Module, mask: Mask, batch: Batch) -> tuple[Scores, float]:
    """Signed theta * dR/d|w| at |theta * M|, and R: the sum of the linearised network's outputs on
    an all-ones input.

    float64, because a product over many layers leaves float32 on both sides: R overflows on
    ResNet-32 and live paths of VGG-19 underflow to dead ones.

    Raises:
        UserError: R is not a finite number even so.
    """
    products, total = synflow_of(model)(mask, batch)
    return unflatten(products, prunable(model)), total


def synflow_of(model: nn.Module) -> Callable[[Mask, Batch], tuple[Tensor, float]]:
    """``synflow_products`` of the weights as they are now, for one mask after another: (mask,
    batch) -> (products [weights], R).
    """
    theta = flatten(prunable(model)).double()
    # |theta * M| and M of the mask before
    masked, last = torch.zeros_like(theta), torch.zeros_like(theta, dtype=torch.bool)
    layers = unflatten(theta, prunable(model))
    weights = {name: w.requires_grad_() for name, w in unflatten(masked, layers).items()}

    def flow(mask: Mask, batch: Batch) -> tuple[Tensor, float]:
        flat = flatten({name: mask[name] for name in layers})
        masked.index_fill_(0, places(last & ~flat), 0.0)
        back = places(flat & ~last)
        masked.index_copy_(0, back, theta.index_select(0, back).abs_())
        last.copy_(flat)
        del back  # makes room for the gradients: a place takes as much as a weight
        with torch.enable_grad(), linearised(model, weights):
            out = model(torch.ones_like(batch[0][:1], dtype=torch.double)).sum()
            gradient = _gradient(out, list(weights.values()))
        total = float(out.detach())
        if not math.isfinite(total):
            raise UserError(
                f"SynFlow's R is {total} in float64 for this {type(model).__name__} of"
                f" {len(layers)} prunable layers; its weights must be finite, and smaller the"
                " deeper it is"
            )
        products = torch.empty_like(theta)
        for out, w, g in zip(unflatten(products, layers).values(), layers.values(), gradient):
            torch.mul(w, g, out=out)
        return products, total

    return flow


def _absolute(scores: Scores, mask: Mask | None = None) -> Scores:
    return {
        name: s.abs() if mask is None else s.abs().mul_(numbers(mask[name], s.dtype))
        for name, s in scores.items()
    }


def random(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """Uniform noise in [0, 1); the control every metric has to beat.

    A weight that is exactly 0 while others of its layer are not was removed before, and has the
    score 0 that the other metrics give it. Initial weights that PyTorch drew with the seed of
    ``generator`` are made of its very numbers; then the noise is of another stream.
    """
    generator = generator or torch.Generator().manual_seed(0)
    other, scores = generator.clone_state(), _uniform(model, generator)
    if made_of(scores, prunable(model)):
        scores = _uniform(model, apart(other))
    return {
        name: scores[name] * (w.detach() != 0) if w.any() else scores[name]
        for name, w in prunable(model).items()
    }


def _uniform(model: nn.Module, generator: torch.Generator) -> Scores:
    return {
        name: torch.rand(w.shape, generator=generator).to(w.device)
        for name, w in prunable(model).items()
    }


def magnitude(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """|theta|."""
    return _absolute({name: _wide(w) for name, w in prunable(model).items()})


def snip(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """|theta M g(theta M)|: how much the loss moves when the weight goes (Lee et al. 2019, eq. 6);
    in rounds, Iterative SNIP.
    """
    return _absolute(products(model, mask, batch, generator=generator).snip, mask)


def force(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """|theta g(theta M)|: the gradient of the pruned network, the weight of the dense one (de Jorge
    et al. 2021, section 4).
    """
    return _absolute(products(model, mask, batch, generator=generator).snip)


def grasp(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """theta Hg, signed: goes first what lowers the gradient flow g.g least, or raises it (Wang et
    al. 2020, eq. 8).
    """
    return products(model, mask, batch, TEMPERATURE, True, generator).grasp


def grasp_abs(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """|theta Hg|: the absolute form of GraSP that Panning's code also has."""
    return _absolute(grasp(model, mask, batch, generator))


def synflow(
    model: nn.Module, mask: Mask, batch: Batch, generator: torch.Generator | None = None
) -> Scores:
    """|theta M dR/d|w||, data-free: the weight's share of all paths (Tanaka et al. 2020, section
    6).

    It is float64.

    Raises:
        UserError: R is not a finite number, or 0 though there are paths.
    """
    products, total = synflow_products(model, mask, batch)
    if not total:
        left = {name: mask[name] & (w != 0) for name, w in prunable(model).items()}
        if masks.count(masks.effective(model, left)):
            raise UserError(
                f"SynFlow's R is 0 in float64 for this {type(model).__name__}, though paths are "
                "left: its weights must be larger the deeper it is"
            )
    return _absolute(products, mask)


@_checked
def prospr(
    model: nn.Module,
    mask: Mask,
    batch: Batch,
    generator: torch.Generator | None = None,
    *,
    steps: int = 3,
    lr: float = 0.1,
    momentum: float = 0.0,
    parts: int = 1,
    first_order: bool = False,
    units: bool = False,
) -> Scores:
    """|theta M dL(phi_K)/dphi_0|: how much the loss *after* K steps of SGD moves when the weight
    goes (Alizadeh et al. 2022, section 3).

    phi_0 = theta M is trained on the batch by K differentiable steps, biases and BatchNorm with it,
    and the gradient goes back through all of them; the mask enters at phi_0 alone. K = 0 is SNIP.

    Args:
        steps: K.
        lr, momentum: of the steps.
        parts: the batch is dealt into so many, each with its share of every class; the steps and
            then the last loss take them in turn. 1 is the same images every time, K + 1 are fresh
            ones each time.
        first_order: do not differentiate through the steps: theta M g(phi_K).
        units: one mask entry for each output unit or channel instead, |sum of its weights'
            products|, spread evenly over its weights: the structured form, for the scope
            ``"units"``.

    Raises:
        UserError: ``steps`` below 0, ``parts`` that are not from 1 to the number of images.
    """
    shares = _dealt(batch, steps, parts)
    with _subnetwork(model, mask, generator, again=not first_order) as (forward, leaves):
        start = dict(zip(prunable(model), leaves))
        phi = {
            name: start[name] if name in start else _wide(p).requires_grad_()
            for name, p in model.named_parameters()
        }
        velocity: dict[str, Tensor | float] = dict.fromkeys(phi, 0.0)
        for x, y in shares[:-1]:
            loss = nn.functional.cross_entropy(forward(x, phi), y)
            gradient = _gradient(loss, list(phi.values()), create_graph=not first_order)
            velocity = {name: momentum * velocity[name] + g for name, g in zip(phi, gradient)}
            phi = {name: p - lr * velocity[name] for name, p in phi.items()}
        x, y = shares[-1]
        gradient = _gradient(nn.functional.cross_entropy(forward(x, phi), y), leaves)
    products = {
        name: w.detach() * g.detach() * numbers(mask[name], w.dtype)
        for (name, w), g in zip(prunable(model).items(), gradient)
    }
    return _absolute({name: _per_unit(p) for name, p in products.items()} if units else products)


def _dealt(batch: Batch, steps: int, parts: int) -> list[Batch]:
    """What each step sees, and then the last loss: the parts of ``batch`` in turn."""
    x, y = batch
    if steps < 0 or not 1 <= parts <= len(x):
        raise UserError(
            f"ProsPr takes steps of at least 0 and from 1 to {len(x)} parts of a batch of"
            f" {len(x)} images, got {steps} and {parts}"
        )
    if parts == 1:
        return [batch] * (steps + 1)
    # Class by class.
    order = y.argsort(stable=True)
    own = [order[k % parts :: parts] for k in range(steps + 1)]
    return [(x[places], y[places]) for places in own]


def _per_unit(products: Tensor) -> Tensor:
    """The mean of each output unit's products at all of its weights."""
    means = products.flatten(1).mean(1)
    return means.view(-1, *[1] * (products.dim() - 1)).expand(products.shape)


@_checked
def ntk_sap(
    model: nn.Module,
    mask: Mask,
    batch: Batch,
    generator: torch.Generator | None = None,
    *,
    repeats: int = 5,
    deviation: float = 0.01,
) -> Scores:
    """|d/dm sum ||f(Z; theta m) - f(Z; (theta + D) m)||^2|: how much the outputs' answer to a
    change of the weights, the nuclear norm of the neural tangent kernel, moves when the weight goes
    (Wang et al. 2023). Data-free: Z is Gaussian noise of the batch's shape.

    The sum is over the images and over ``repeats`` draws of Z, of D ~ N(0, ``deviation``^2), and of
    theta: a layer's own weights in random places, so that the score is of the architecture and not
    of one draw of its weights.

    Raises:
        UserError: no repeats, or a deviation that is not above 0.
    """
    if repeats < 1 or not deviation > 0:
        raise UserError(
            f"NTK-SAP takes at least 1 repeat and a deviation above 0, got {repeats} and"
            f" {deviation}"
        )
    if not batch[0].is_floating_point():
        raise UserError("NTK-SAP feeds a network noise, and this one reads tokens")
    generator = generator or torch.Generator().manual_seed(0)
    x, theta = _wide(batch[0]), {name: _wide(w) for name, w in prunable(model).items()}

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    with _subnetwork(model, mask, generator) as (forward, _):
        gates = {name: numbers(mask[name], w.dtype).requires_grad_() for name, w in theta.items()}
        total = x.new_zeros(())
        for _ in range(repeats):
            noise = normal(x)
            drawn = {
                name: w.flatten()[torch.randperm(w.numel(), generator=generator).to(w.device)].view(
                    w.shape
                )
                for name, w in theta.items()
            }
            moved = {name: w + deviation * normal(w) for name, w in drawn.items()}
            here, there = (
                forward(noise, {name: w * gates[name] for name, w in weights.items()})
                for weights in (drawn, moved)
            )
            total = total + (here - there).square().sum()
        gradient = _gradient(total, list(gates.values()))
    return _absolute(dict(zip(theta, gradient)), mask)


METRICS = Table(
    __name__ + ".METRICS",
    {
        "random": random,
        "magnitude": magnitude,
        "snip": snip,
        "grasp": grasp,
        "grasp-abs": grasp_abs,
        "synflow": synflow,
        "force": force,
        "prospr": prospr,
        "ntk-sap": ntk_sap,
    },
)
