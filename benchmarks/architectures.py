"""Does what is done here hold on networks of others? Each of them is scored, pruned and trained,
and compared with an independent, plain version; what can not be done has to be refused in one
sentence.

``python -m benchmarks.architectures`` asks all of them, about ten minutes, and writes the table to
``results/benchmarks``. It needs timm 1.0.31, which nothing else here does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from panning_core import data, masks, metrics, models, pruning, results, training
from panning_core.__main__ import command_line
from panning_core.errors import UserError

CLASSES, IMAGES, SIDE, DENSITY = 10, 4, 64, 0.1
WORDS = 50  #: of the text networks


class Words(nn.Module):
    """Tokens [n, length] through an embedding and a GRU."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.gru(self.embedding(x))[0][:, -1])


class Transformer(nn.Module):
    """Tokens [n, length] through two layers of attention."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.body(self.embedding(x)).mean(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, a skip connection, and the mean of every map."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.head(torch.cat([skip, self.up(self.deep(skip))], 1)).mean((2, 3))


def _vision(name: str, **how) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **how)


def _timm(name: str, **how) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **how)

    return build


#: name -> the network with random weights; the small ones are in the tests as well
SMALL: dict[str, Callable[[], nn.Module]] = {
    "squeezenet1_1": _vision("squeezenet1_1"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "U-Net": UNet,
    "GRU classifier": Words,
    "transformer": Transformer,
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **SMALL,
    "resnet18": _vision("resnet18"),
    "resnext50_32x4d": _vision("resnext50_32x4d"),
    "densenet121": _vision("densenet121"),
    "googlenet": _vision("googlenet", aux_logits=False, init_weights=False),
    "googlenet, three outputs": _vision("googlenet", init_weights=False),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "mobilenet_v3_large": _vision("mobilenet_v3_large"),
    "mnasnet0_5": _vision("mnasnet0_5"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "regnet_y_400mf": _vision("regnet_y_400mf"),
    "convnext_tiny": _vision("convnext_tiny"),
    "timm convnext_atto": _timm("convnext_atto"),
    "timm vit_tiny": _timm("vit_tiny_patch16_224", img_size=SIDE),
    "timm mixer_s32": _timm("mixer_s32_224", img_size=SIDE),
    "timm resmlp_12": _timm("resmlp_12_224", img_size=SIDE),
    "timm efficientnet_lite0": _timm("efficientnet_lite0"),
    "timm resnet26t": _timm("resnet26t"),
    "timm ghostnet_100": _timm("ghostnet_100"),
    "resnet152": _vision("resnet152"),
    "wide_resnet50_2": _vision("wide_resnet50_2"),
    "vit_b_16": _vision("vit_b_16", image_size=SIDE),
    "swin_t": _vision("swin_t"),
}


class Case(NamedTuple):
    """A network, float64 and without noise of its own, and images to score it on."""

    model: nn.Module
    x: Tensor
    y: Tensor


def case(name: str) -> Case:
    """The network ``name`` and four images, or texts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
        for module in model.modules():
            for noise in ("p", "drop_prob", "drop_rate", "dropout"):
                if isinstance(getattr(module, noise, None), float):
                    setattr(module, noise, 0.0)
        texts = isinstance(next(m for m in model.modules() if not list(m.children())), nn.Embedding)
        shape = (IMAGES, 12) if texts else (IMAGES, 3, SIDE, SIDE)
        x = torch.randint(WORDS, shape) if texts else torch.randn(shape, dtype=torch.double)
    model.input_shape = shape[1:]
    return Case(model, x, torch.arange(IMAGES) % CLASSES)


# --- the plain versions: each returns what is wrong, in words, or how well it agrees --------------


def _distance(found: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """|found - plain| / |plain| over all weights."""
    a, b = (torch.cat([t.flatten().double() for t in each.values()]) for each in (found, plain))
    length = float(b.norm())  # 0 in a network whose last layer begins with zeros
    return float((a - b).norm()) / length if length else float(a.norm())


def _gradient(case: Case, shift: list[Tensor] | None = None, temperature: float = 1.0):
    """The weights and the gradient at them, moved by ``shift``, in train mode."""
    model = copy.deepcopy(case.model).train()
    weights = models.prunable(model)
    with torch.no_grad():
        for weight, step in zip(weights.values(), shift or []):
            weight += step
    logits = model(case.x) / temperature
    grads = torch.autograd.grad(
        cross_entropy(logits, case.y), list(weights.values()), allow_unused=True
    )
    return weights, [
        torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), grads)
    ]


def snip(case: Case) -> str:
    """|weight * gradient|, against one backward pass."""
    found = metrics.snip(case.model, masks.ones(case.model), (case.x, case.y))
    weights, grads = _gradient(case)
    plain = {name: (w * g).abs().detach() for (name, w), g in zip(weights.items(), grads)}
    return _within(_distance(found, plain), 1e-9)


def grasp(case: Case) -> str:
    """weight * Hessian * gradient, against the difference of two gradients."""
    found = metrics.grasp(case.model, masks.ones(case.model), (case.x, case.y))
    weights, grads = _gradient(case, temperature=metrics.TEMPERATURE)
    length = sum(float((g**2).sum()) for g in grads) ** 0.5
    size = sum(float((w**2).sum()) for w in weights.values()) ** 0.5
    distances, differences = [], []
    for relative in (1e-10, 1e-12):  # so short that hardly a ReLU changes its side
        step = relative * size / length
        ahead, behind = (
            _gradient(case, [sign * step * g for g in grads], metrics.TEMPERATURE)[1]
            for sign in (1, -1)
        )
        plain = {
            name: (w * (a - b) / (2 * step)).detach()
            for (name, w), a, b in zip(weights.items(), ahead, behind)
        }
        differences.append(plain)
        distances.append(_distance(found, plain))
    if _distance(*differences) > 1e-3:  # too rough a network: the differences agree on nothing
        distances.append(_distance(found, _curvature(case)))
    return _within(min(distances), 1e-3)


def _curvature(case: Case) -> dict[str, Tensor]:
    """weight * Hessian * gradient by differentiating twice."""
    model = copy.deepcopy(case.model).train()
    weights = models.prunable(model)
    loss = cross_entropy(model(case.x) / metrics.TEMPERATURE, case.y)
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    flow = torch.stack([(g * g.detach()).sum() for g in grads]).sum()
    curvature = torch.autograd.grad(flow, list(weights.values()))
    return {name: (w * h).detach() for (name, w), h in zip(weights.items(), curvature)}


def synflow(case: Case) -> str:
    """weight * dR/dweight, against the difference of two R, for the largest score of each layer."""
    batch, ones = (case.x, case.y), masks.ones(case.model)
    scores = metrics.synflow(case.model, ones, batch)
    if not all(torch.isfinite(s).all() for s in scores.values()):
        return "WRONG: a score is not finite"
    model, h, worst = copy.deepcopy(case.model), 1e-3, 0.0
    weights = models.prunable(model)
    for name in list(weights)[:: max(1, len(weights) // 8)]:
        place = scores[name].argmax()
        flat, value = weights[name].data.view(-1), weights[name].data.view(-1)[place].clone()
        sides = []
        for factor in (1 + h, 1 - h):
            flat[place] = value * factor
            sides.append(metrics.synflow_products(model, ones, batch)[1])
        flat[place] = value
        largest = float(scores[name].max())
        noise = 8 * torch.finfo(torch.double).eps * sides[0] / h  # of the difference
        off = abs((sides[0] - sides[1]) / (2 * h) - largest)
        worst = max(worst, max(0.0, off - noise) / max(largest, 1e-300))
    return _within(worst, 1e-4)


def effective(case: Case) -> str:
    """No weight that the output depends on may be called dead."""
    # In eval mode: a batch norm in train mode takes what one place of a map brings to all of it.
    model = copy.deepcopy(case.model).eval()
    weights = models.prunable(model)
    scores = metrics.random(model, masks.ones(model), (case.x, case.y))
    mask = masks.keep_top(scores, DENSITY)
    found = masks.effective(model, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in mask:
                parameter.mul_(mask[name])
            elif "weight" not in name and "gamma" not in name and "scale" not in name:
                parameter.zero_()  # a bias is no input
    out = model(case.x)
    grads = torch.autograd.grad(
        (out * torch.randn_like(out)).sum(), list(weights.values()), allow_unused=True
    )
    largest = max(float(g.abs().max()) for g in grads if g is not None)
    for name, g in zip(mask, grads):
        matters = torch.zeros_like(mask[name]) if g is None else g.abs() > 1e-9 * largest
        if (matters & mask[name] & ~found[name]).any():
            return f"WRONG: {name} has weights that matter and are called dead"
    return f"right, {masks.count(found) / masks.count(mask):.0%} of the kept ones"


def prune(case: Case) -> str:
    """Exactly so many weights stay, and the network is not touched."""
    before = copy.deepcopy(case.model.state_dict())
    mask, _ = pruning.prune(case.model, "snip", DENSITY, (case.x, case.y))
    if masks.count(mask) != round(DENSITY * masks.size(mask)):
        return f"WRONG: {masks.count(mask)} weights of {masks.size(mask)}"
    after = case.model.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    return "right" if same else "WRONG: the network has changed"


def train(case: Case) -> str:
    """Three steps, against a plain loop."""
    x, y = case.x.repeat(3, *[1] * (case.x.dim() - 1)), case.y.repeat(3)
    part = data.Split(x, y, CLASSES)
    splits = data.Splits("random", "random", part, part, part, CLASSES, "none")
    recipe = training.Recipe(epochs=1, batch_size=IMAGES, lr=0.01)
    scores = metrics.magnitude(case.model, masks.ones(case.model), (case.x, case.y))
    mask = masks.keep_top(scores, DENSITY)
    ours, plain = copy.deepcopy(case.model), copy.deepcopy(case.model)
    log = training.train(ours, mask, splits, recipe)
    weights = models.prunable(plain)
    optimiser = torch.optim.SGD(
        plain.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    masked = [(weights[name], ~m) for name, m in mask.items()]
    for weight, gone in masked:
        weight.data[gone] = 0.0
    for steps in training.epochs(part, recipe):
        for images, labels, lr in steps:
            plain.train()
            optimiser.param_groups[0]["lr"] = lr
            optimiser.zero_grad()
            cross_entropy(plain(images), labels).backward()
            for weight, gone in masked:
                if weight.grad is not None:
                    weight.grad[gone] = 0.0
            optimiser.step()
    found = {name: w.detach() for name, w in models.prunable(ours).items()}
    if any(w[~mask[name]].any() for name, w in found.items()):
        return "WRONG: a pruned weight is not 0"
    told = _within(_distance(found, {name: w.detach() for name, w in weights.items()}), 1e-6)
    return f"{told}, {log.attrs['engine']}"


def _within(distance: float, most: float) -> str:
    return "right" if distance <= most else f"WRONG: {distance:.1e} from the plain version"


CHECKS: dict[str, Callable[[Case], str]] = {
    "SNIP": snip,
    "GraSP": grasp,
    "SynFlow": synflow,
    "effective": effective,
    "prune": prune,
    "three steps": train,
}


def row(name: str) -> dict[str, object]:
    """What becomes of one network: right, wrong and how, or the sentence that refuses it."""
    made = case(name)
    found: dict[str, object] = {"network": name}
    found["weights"] = sum(w.numel() for w in models.prunable(made.model).values())
    for check, ask in CHECKS.items():
        try:
            found[check] = ask(made)
        except UserError as error:
            found[check] = f"refused: {error}"
        except Exception as error:  # what must not happen
            found[check] = f"WRONG: {type(error).__name__}: {str(error).splitlines()[0]}"
    return found


def main() -> int:
    torch.set_num_threads(1)
    folder = results() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in NETWORKS:
        rows.append(row(name))
        print(*rows[-1].values(), sep=" | ", flush=True)
        table = pd.DataFrame(rows)
        table.to_csv(folder / "architectures.csv", index=False)
        (folder / "architectures.md").write_text(table.to_markdown(index=False) + "\n")
    return int(table.map(lambda cell: str(cell).startswith("WRONG")).to_numpy().any())


if __name__ == "__main__":
    command_line(main)
