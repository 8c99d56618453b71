"""What is trained is the user's network: an engine or a smaller network does the same or is not
used.
"""

import copy
import math
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from panning_core import compaction, data, masks, metrics, models, sparse, training
from panning_core.errors import UserError
from panning_core.inspection import faithful, noise
from panning_core.inspection.faithful import Answer, ask, difference

pytest.importorskip("numba")

RECIPE = training.Recipe(epochs=2, batch_size=32, lr=0.1)


def make_splits(shape, classes=4, train=160):
    draw, y = np.random.default_rng(0), np.arange(train + 40) % classes
    x = draw.random((train + 40, *shape)) + 0.3 * y.reshape(-1, *[1] * len(shape))
    return data.from_arrays(x[:train], y[:train], x[train:], y[train:])


SPLITS = make_splits((1, 6, 6))


def some_mask(model, density=0.3):
    source = torch.Generator().manual_seed(1)
    weights = models.prunable(model).items()
    return {name: torch.rand(w.shape, generator=source) < density for name, w in weights}


def plain(model, mask, splits=SPLITS, recipe=RECIPE):
    """``training.train`` as a slow loop: dense PyTorch, SGD, and the mask on weights and
    gradients.
    """
    weights, trained = models.prunable(model), [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trained, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    order, drawn = (torch.Generator().manual_seed(recipe.seed) for _ in range(2))
    count = math.ceil(len(splits.train) / recipe.batch_size)
    for name, w in weights.items():
        w.data *= mask[name]
    for epoch in range(recipe.epochs):
        shuffled = torch.randperm(len(splits.train), generator=order)
        with noise.drawn_from(drawn, splits.train.x.device):
            for step in range(count):
                part = shuffled[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                t = (epoch * count + step) / (count * recipe.epochs)
                sgd.param_groups[0]["lr"] = recipe.lr * (1 + math.cos(math.pi * t)) / 2
                sgd.zero_grad()
                logits = model.train()(splits.train.x[part])
                nn.functional.cross_entropy(logits, splits.train.y[part]).backward()
                for name, w in weights.items():
                    if w.grad is not None:
                        w.grad *= mask[name]
                sgd.step()


def assert_trained_alike(make, density=0.3, splits=SPLITS, engine=None):
    """``training.train`` makes of a network what the loop does; returns the engine and the
    warnings.
    """
    model, other = make(), make()
    mask = some_mask(model, density)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        log = training.train(model, mask, splits, RECIPE, engine)
    plain(other, mask, splits)
    live = masks.effective(model, mask) if alike(model) else mask
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values()):
        kept = live.get(name, torch.ones_like(one, dtype=torch.bool))
        assert name not in mask or not one[~mask[name]].any()
        gap, size = (one - two)[kept].double().norm(), two[kept].double().norm()
        assert gap <= 2e-3 * size + 2e-4, (name, float(gap), float(size))
    model.eval(), other.eval()
    with torch.no_grad():
        out, right = model(splits.test.x), other(splits.test.x)
    assert (out - right).norm() <= 2e-3 * right.norm() + 2e-4
    return log.attrs["engine"], [
        str(each.message) for each in told if "dense engine" in str(each.message)
    ]


def alike(model):
    """Whether dead units of it are not trained, and so do not decay."""
    return type(model) is nn.Sequential and not faithful.altered(model)


# --- hooks ---


def mlp(width=20):
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, 4)
    model = nn.Sequential(*layers)
    model.input_shape = (1, 6, 6)
    return model


def replaced(module, function):
    module.forward = types.MethodType(function, module)


def tenth(given):
    return tuple(0.1 * g if g is not None else g for g in given)


def shrink(parameter):
    parameter.grad.mul_(0.1)


#: kind of hook -> how a network gets it, and what is said of it
HOOKED = {
    "forward": (
        lambda m: m[2].register_forward_hook(lambda _, x, out: out * 0.1),
        "2 has a forward hook",
    ),
    "forward with kwargs": (
        lambda m: m[2].register_forward_hook(lambda _, x, more, out: out * 0.1, with_kwargs=True),
        "2 has a forward hook",
    ),
    "forward-pre": (
        lambda m: m[1].register_forward_pre_hook(lambda _, x: x[0] * 3),
        "1 has a forward-pre hook",
    ),
    "of the network": (
        lambda m: m.register_forward_hook(lambda _, x, out: 3 * out),
        "the network has a forward hook",
    ),
    "backward": (
        lambda m: m[1].register_full_backward_hook(lambda _, inner, outer: tenth(inner)),
        "1 has a backward hook",
    ),
    "backward-pre": (
        lambda m: m[1].register_full_backward_pre_hook(lambda _, outer: tenth(outer)),
        "1 has a backward-pre hook",
    ),
    "weight": (lambda m: m[1].weight.register_hook(lambda g: g * 0.1), "1.weight has a hook"),
    "bias": (lambda m: m[3].bias.register_hook(lambda g: g * 0), "3.bias has a hook"),
    "accumulated": (
        lambda m: m[1].weight.register_post_accumulate_grad_hook(shrink),
        "1.weight has a hook",
    ),
    "layer's forward": (
        lambda m: replaced(m[2], lambda self, x: torch.tanh(x)),
        "the forward of 2 was replaced",
    ),
    "network's forward": (
        lambda m: replaced(m, lambda self, x: self[3](self[1](self[0](x)))),
        "the forward of the network was replaced",
    ),
    "a function for a forward": (
        lambda m: setattr(m[2], "forward", torch.sigmoid),
        "the forward of 2 was replaced",
    ),
}


@pytest.fixture(params=HOOKED)
def hooked(request):
    change, says = HOOKED[request.param]

    def make():
        model = mlp()
        change(model)
        return model

    return make, says


def test_a_network_with_a_hook_is_trained_itself_and_the_hook_is_named(hooked):
    make, says = hooked
    assert faithful.altered(make()) == says and faithful.altered(mlp()) is None
    engine, told = assert_trained_alike(make)
    assert engine == "dense" and len(told) == 1 and told[0].endswith(f"which is slower: {says}")


def test_asked_for_the_dense_engine_it_is_the_network_itself_too(hooked):
    assert assert_trained_alike(hooked[0], engine="dense") == ("dense", [])


def test_the_sparse_engine_and_compaction_refuse_it_in_a_sentence(hooked):
    make, says = hooked
    model = make()
    mask = some_mask(model)
    with pytest.raises(UserError, match=f"^the sparse engine can not train this network: {says}"):
        training.train(model, mask, SPLITS, RECIPE, engine="sparse")
    with pytest.raises(UserError, match=f"^compaction cannot read this network: {says}$"):
        compaction.compact(model, mask)


def test_a_hook_of_all_modules():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, x, out: out * 0.9)
    try:
        engine, told = assert_trained_alike(mlp)
    finally:
        handle.remove()
    assert engine == "dense" and "a forward hook of all modules is registered" in told[0]


# --- forwards ---


class Residual(nn.Module):
    """Two convolutions, put together by ``way``."""

    input_shape = (1, 6, 6)

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.b1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c2, self.b2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.pool, self.flat = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.out, self.way = nn.Linear(6, 4), way

    def forward(self, x):
        h = self.b1(self.c1(x))
        return self.out(self.flat(self.pool(self.relu(self.way(self, h)))))


class Own(nn.Module):
    """A hidden layer, or not, as ``way`` says."""

    input_shape = (1, 6, 6)

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.relu, self.encode = nn.Flatten(), nn.ReLU(), nn.Linear(36, 36)
        self.head, self.way = nn.Linear(36, 4), way

    def forward(self, x, hidden=None, *more, deep=True, **others):
        return self.head(self.way(self, self.flat(x), hidden, deep))


def frozen_encoder(self, x):
    with torch.no_grad():
        return self.relu(self.encode(x))


def in_place(self, h):
    branch = self.b2(self.c2(h))
    kept = branch
    branch += h
    return kept


#: forward -> the network, what trains it, and what a warning says
FORWARDS = {
    "added": (lambda: Residual(lambda m, h: torch.add(m.b2(m.c2(h)), h)), "sparse", None),
    "alpha": (
        lambda: Residual(lambda m, h: torch.add(m.b2(m.c2(h)), h, alpha=0.1)),
        "dense",
        "add with alpha is not supported",
    ),
    "alpha near 1": (
        lambda: Residual(lambda m, h: torch.add(m.b2(m.c2(h)), h, alpha=0.999)),
        "dense",
        "add with alpha is not supported",
    ),
    "in place": (lambda: Residual(in_place), "dense", ""),
    "optional input": (
        lambda: Own(lambda m, x, h, deep: m.relu(m.encode(x)) if h is None else h),
        "sparse",
        None,
    ),
    "a default": (
        lambda: Own(lambda m, x, h, deep: m.relu(m.encode(x)) if deep else x),
        "sparse",
        None,
    ),
    "kind of input": (
        lambda: Own(
            lambda m, x, h, d: m.encode(x) if isinstance(x, torch.Tensor) else m.relu(m.encode(x))
        ),
        "dense",
        "the sparse engine has another output in train mode than the network itself",
    ),
    "mode": (
        lambda: Own(lambda m, x, h, d: m.relu(m.encode(x)) if m.training else m.encode(x)),
        "dense",
        "the sparse engine has another output in eval mode than the network itself",
    ),
    "gradients off": (
        lambda: Own(lambda m, x, h, d: frozen_encoder(m, x)),
        "dense",
        "the sparse engine has another gradient of encode.weight than the network itself",
    ),
    "gradients asked for": (
        lambda: Own(
            lambda m, x, h, d: m.relu(m.encode(x)) if torch.is_grad_enabled() else m.encode(x)
        ),
        "dense",
        "another output in eval mode",
    ),
    "shape": (
        lambda: Own(lambda m, x, h, d: m.encode(x) if x.shape[0] > 9 else m.relu(m.encode(x))),
        "dense",
        "its forward can not be traced",
    ),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_is_read_otherwise_is_found(name):
    make, engine, says = FORWARDS[name]
    found, told = assert_trained_alike(make)
    assert found == engine and len(told) == (says is not None) and (says is None or says in told[0])
    if says:
        with pytest.raises(UserError, match="^the sparse engine can not train this network: "):
            training.train(make(), some_mask(make()), SPLITS, RECIPE, engine="sparse")


def test_a_module_whose_train_keeps_a_norm_in_eval_mode():
    class Kept(Residual):
        def train(self, mode=True):
            super().train(mode)
            self.b1.eval()
            return self

    engine, told = assert_trained_alike(lambda: Kept(lambda m, h: m.b2(m.c2(h))))
    assert engine == "dense" and "the sparse engine has another" in told[0]


def test_a_class_whose_forward_was_replaced_is_found(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(min=-0.5))
    engine, told = assert_trained_alike(mlp)
    assert engine == "dense" and "the sparse engine has another" in told[0]


def test_a_subclass_with_its_own_forward():
    class Half(nn.Conv2d):
        def forward(self, x):
            return 0.5 * super().forward(x)

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(Half(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
        model.input_shape = (1, 6, 6)
        return model

    engine, told = assert_trained_alike(make)
    assert engine == "dense" and "the forward of 0, a Half, is not supported" in told[0]
    with pytest.raises(UserError, match="compaction cannot read 0, a Half"):
        compaction.compact(make(), some_mask(make()))


def test_a_smaller_network_that_computes_something_else_is_not_used(monkeypatch):
    compact = compaction.compact

    def wrong(model, mask, fold=True):
        small = compact(model, mask, fold)
        small.model[1].bias.data += 0.01
        return small

    monkeypatch.setattr(compaction, "compact", wrong)
    for engine, words in (("dense", "compacted network"), (None, "sparse engine")):
        found, told = assert_trained_alike(mlp, engine=engine)
        assert found == "dense" and len(told) == 1 and f"the {words} has another output" in told[0]


# --- the comparison itself ---


def answers(seed=0):
    draw = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    return Answer(rand(4, 3), rand(4, 3), {"a": rand(5, 5), "b": 1e-7 * rand(5), "c": rand(2)})


@pytest.mark.parametrize(
    "part, change, says",
    [
        ("logits", 1e-5, None),
        ("logits", 1e-3, "output in train mode"),
        ("logits", math.nan, "output in train mode"),
        ("settled", 1e-5, None),
        ("settled", 1e-3, "output in eval mode"),
        ("settled", math.inf, "output in eval mode"),
        ("a", 0.03, None),
        ("a", 0.2, "gradient of a"),
        ("b", 5.0, None),
        ("c", 0.2, "gradient of c"),
    ],
)
def test_what_is_rounding_and_what_is_not(part, change, says):
    own = answers()
    gradients = {n: g * (1 + change) if n == part else g for n, g in own.gradients.items()}
    others = {n: getattr(own, n) * (1 + change if n == part else 1) for n in ("logits", "settled")}
    assert difference(own, Answer(**others, gradients=gradients)) == says


def test_nothing_is_compared_where_the_network_itself_is_not_finite():
    own = answers()
    assert difference(own._replace(logits=own.logits * math.nan), own) is None
    zero = own._replace(logits=torch.zeros(4, 3))
    assert difference(zero, zero) is None and difference(zero, own) == "output in train mode"


def test_asking_leaves_no_trace(case, unchanged):
    model, (x, y) = case
    mask, grads = some_mask(model), [p.grad for p in model.parameters()]
    with unchanged(model):
        one, two = (ask(model, mask, x, y) for _ in range(2))
    assert torch.equal(one.logits, two.logits) and torch.equal(one.settled, two.settled)
    assert all(not g[~mask[n]].any() for n, g in one.gradients.items() if n in mask)
    other = copy.deepcopy(model)
    for name, weight in models.prunable(other).items():
        weight.data *= mask[name]
    assert torch.equal(one.settled, other.eval()(x))
    loss = nn.functional.cross_entropy(other.train()(x), y)
    found = torch.autograd.grad(loss, list(other.parameters()))
    for (name, g), right in zip(one.gradients.items(), found):
        torch.testing.assert_close(g, right * mask.get(name, torch.ones(())))
    assert len(grads) == len(found)


def test_buffers_that_a_forward_replaces_and_errors_leave_no_trace(unchanged):
    class Counting(nn.Module):
        input_shape = (1, 6, 6)

        def __init__(self):
            super().__init__()
            self.fc, self.flat = nn.Linear(36, 4), nn.Flatten()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            torch.rand(1)
            if len(x) == 3:
                raise ValueError("three")
            return self.fc(self.flat(x))

    model = Counting()
    mask, count = some_mask(model), model.count
    with unchanged(model):
        ask(model, mask, SPLITS.train.x[:4], SPLITS.train.y[:4])
        with pytest.raises(ValueError, match="three"):
            ask(model, mask, SPLITS.train.x[:3], SPLITS.train.y[:3])
    assert model.count is count


def test_preparing_a_training_leaves_the_network_to_the_trainer(unchanged):
    """Up to the first step of the sparse engine nothing of it changes."""
    model = mlp()
    with unchanged(model):
        training.engines.prepare(model, some_mask(model), SPLITS, RECIPE)


def test_the_looks_of_an_agent_are_compared_too():
    from panning_core.agent import observations

    torch.manual_seed(0)
    model = Own(
        lambda m, x, h, d: m.encode(x) if isinstance(x, torch.Tensor) else m.relu(m.encode(x))
    )
    mask, batch = some_mask(model), (SPLITS.train.x[:40], SPLITS.train.y[:40])
    assert sparse.unsupported(model) is None
    look = observations.Sight(model).look(mask, batch)
    right = metrics.products(model, mask, batch, metrics.TEMPERATURE)
    assert look.loss == pytest.approx(right.loss, rel=1e-6) and look.gtg == pytest.approx(
        right.gtg, rel=1e-4
    )


# --- any small network ---


class Drawn(nn.Module):
    """A small network of what engines know and what they do not."""

    input_shape = (1, 6, 6)

    def __init__(self, plan):
        super().__init__()
        torch.manual_seed(plan["seed"])
        width, self.plan = plan["width"], plan
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.again, self.other = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.relu, self.pool, self.flat = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.drop = nn.Dropout(0.5) if plan["drop"] else None
        self.hidden, self.out = nn.Linear(width, 12), nn.Linear(12, 4)

    def forward(self, x, skip=None):
        h = self.relu(self.norm(self.conv(x)))
        branch, kind = self.other(self.again(h)), self.plan["kind"]
        if skip is None and kind != "none":
            alpha = {"alpha": 0.3}.get(kind)
            h = torch.add(branch, h, alpha=alpha) if alpha else branch + h
        else:
            h = branch
        h = self.flat(self.pool(self.relu(h)))
        h = self.hidden(h) if kind == "mode" and self.training else self.relu(self.hidden(h))
        return self.out(self.drop(h) if self.drop else h)


def layered(plan):
    torch.manual_seed(plan["seed"])
    drop = [nn.Dropout(0.5)] if plan["drop"] else []
    norm = [nn.BatchNorm2d(plan["width"])] if plan["kind"] != "none" else []
    model = nn.Sequential(
        nn.Conv2d(1, plan["width"], 3, bias=not norm),
        *norm,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * plan["width"], 12),
        nn.ReLU(),
        *drop,
        nn.Linear(12, 4),
    )
    model.input_shape = (1, 6, 6)
    return model


CHANGES = {
    "nothing": lambda m: None,
    "forward hook": lambda m: m.relu_.register_forward_hook(lambda _, x, out: out * 0.5),
    "pre hook": lambda m: m.last_.register_forward_pre_hook(lambda _, x: x[0] + 0.1),
    "gradient hook": lambda m: m.last_.weight.register_hook(lambda g: 0.5 * g),
    "frozen": lambda m: m.last_.requires_grad_(False),
    "frozen first": lambda m: next(m.parameters()).requires_grad_(False),
}
PLANS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "width": st.integers(2, 6),
        "drop": st.booleans(),
        "own": st.booleans(),
        "kind": st.sampled_from(["plain", "plain", "alpha", "mode", "none"]),
        "change": st.sampled_from([*CHANGES, "nothing", "nothing"]),
        "density": st.sampled_from([1.0, 0.6, 0.3]),
        "engine": st.sampled_from([None, "dense"]),
    }
)


@given(PLANS)
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_any_network_is_trained_as_itself(plan):
    def make():
        model = Drawn(plan) if plan["own"] else layered(plan)
        relu = next(module for module in model.modules() if isinstance(module, nn.ReLU))
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        CHANGES[plan["change"]](
            types.SimpleNamespace(relu_=relu, last_=last, parameters=model.parameters)
        )
        return model

    engine, told = assert_trained_alike(make, plan["density"], engine=plan["engine"])
    odd = (
        plan["drop"]
        or plan["change"] != "nothing"
        or (plan["own"] and plan["kind"] in ("alpha", "mode"))
    )
    assert engine == "dense" if odd or plan["engine"] else engine in ("sparse", "dense")
    assert all("\n" not in each for each in told)


# --- frozen, unused, computed ---


@pytest.mark.parametrize("name", ["1.weight", "1.bias", "3.weight"])
def test_frozen_parameters_stay_and_the_others_are_trained(name):
    def make():
        model = mlp()
        model.get_parameter(name).requires_grad_(False)
        return model

    engine, told = assert_trained_alike(make)
    assert engine == "dense" and f"{name[0]} is frozen" in told[0]
    assert_trained_alike(make, engine="dense")
    model = make()
    mask, before = some_mask(model), make().get_parameter(name)
    training.train(model, mask, SPLITS, RECIPE, engine="dense")
    kept = mask.get(name, torch.ones(before.shape, dtype=torch.bool))
    assert (
        torch.equal(model.get_parameter(name)[kept], before[kept])
        and not model.get_parameter(name).requires_grad
    )


def test_a_network_that_is_frozen_whole_is_refused():
    model = mlp().requires_grad_(False)
    with pytest.raises(UserError, match="every parameter is frozen"):
        training.train(model, masks.ones(model), SPLITS, RECIPE)


@pytest.mark.parametrize("engine", ["sparse", "dense"])
def test_a_layer_that_is_not_called_stays_but_for_its_pruned_weights(engine):
    def make():
        model = Own(lambda m, x, h, deep: m.relu(m.encode(x)))
        model.spare = nn.Linear(36, 7)
        return model

    assert assert_trained_alike(make, engine=engine) == (engine, [])
    model, fresh = make(), make()
    mask = some_mask(model)
    training.train(model, mask, SPLITS, RECIPE, engine=engine)
    assert torch.equal(model.spare.weight, fresh.spare.weight * mask["spare.weight"])


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        masked,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_a_layer_whose_weight_is_computed_is_named_and_stays_to_the_bit(change):
    model = mlp()
    mask = some_mask(model)
    batch = SPLITS.train.x[:8], SPLITS.train.y[:8]
    change(model[1])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for call in (
        lambda: metrics.snip(model, mask, batch),
        lambda: metrics.magnitude(model, mask, batch),
        lambda: masks.ones(model),
        lambda: compaction.compact(model, mask),
        lambda: training.train(model, mask, SPLITS, RECIPE),
    ):
        with pytest.raises(
            UserError,
            match="^the weight of 1, a .*Linear, is computed from other parameters.*prune.remove",
        ):
            call()
    after = model.state_dict()
    assert list(after) == list(before) and all(
        torch.equal(after[name], t) for name, t in before.items()
    )


# --- wrapped networks, and sentences before the first step ---


def test_a_compiled_network_is_trained_itself_and_scored():
    def make():
        model = torch.compile(mlp(), backend="eager")
        model.input_shape = (1, 6, 6)
        return model

    model, other = make(), mlp()
    mask, right = some_mask(model), some_mask(other)
    with pytest.warns(UserWarning, match="slower: torch.compile made it of another"):
        log = training.train(model, mask, SPLITS, RECIPE)
    training.train(other, right, SPLITS, RECIPE, engine="dense")
    assert log.attrs["engine"] == "dense"
    torch.testing.assert_close(model(SPLITS.test.x), other(SPLITS.test.x), rtol=1e-4, atol=1e-5)
    scores = metrics.snip(make(), mask, (SPLITS.train.x[:8], SPLITS.train.y[:8]))
    expected = metrics.snip(mlp(), right, (SPLITS.train.x[:8], SPLITS.train.y[:8]))
    for one, two in zip(scores.values(), expected.values()):
        torch.testing.assert_close(one, two)


def test_a_parallel_network_is_trained_and_scored_as_the_one_in_it():
    def make():
        model = nn.DataParallel(mlp())
        model.input_shape = (1, 6, 6)
        return model

    engine, told = assert_trained_alike(make)
    assert engine == "sparse" and not told
    batch = SPLITS.train.x[:8], SPLITS.train.y[:8]
    scores = metrics.grasp(make(), some_mask(make()), batch)
    expected = metrics.grasp(mlp(), some_mask(mlp()), batch)
    assert all(map(torch.equal, scores.values(), expected.values()))
    assert list(scores) == ["module.1.weight", "module.3.weight"]


@pytest.mark.parametrize("engine", ["sparse", "dense", None])
def test_a_last_batch_of_one_that_a_norm_can_not_take_is_refused_before_the_first_step(engine):
    def make(kernel):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 6, kernel), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()
        model = nn.Sequential(*layers, nn.Linear(6 * (7 - kernel) ** 2, 4))
        model.input_shape = (1, 6, 6)
        return model

    x, y = torch.randn(33, 1, 6, 6), torch.arange(33) % 4
    part = data.Split(x, y, 4)
    splits = data.Splits("s", "s", part, part, part, 4, "0")
    model, fresh = make(6), make(6)
    with pytest.raises(
        UserError,
        match=r"^33 images in batches of 32 leave a batch of one image, which .* choose",
    ):
        training.train(model, some_mask(model), splits, RECIPE, engine=engine)
    assert all(map(torch.equal, model.state_dict().values(), fresh.state_dict().values()))
    assert_trained_alike(
        lambda: make(5), splits=splits, engine=engine
    )  # a map of four pixels is enough
    training.train(
        model, some_mask(model), splits, training.Recipe(epochs=1, batch_size=31), engine=engine
    )


class Auxiliary(nn.Module):
    """As GoogLeNet and Inception: more than one output in train mode."""

    input_shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(36, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        h = self.body(x.flatten(1)).relu()
        return (self.head(h), self.aux(h)) if self.training else self.head(h)


def test_more_than_one_output_in_train_mode_is_a_sentence():
    model = Auxiliary()
    mask, batch = masks.ones(model), (SPLITS.train.x[:8], SPLITS.train.y[:8])
    says = (
        r"^in train mode the network answers with a tuple and not with one tensor \[n, classes\];"
        r" build it"
    )
    for engine in (None, "dense", "sparse"):
        with pytest.raises(UserError, match=says):
            training.train(model, mask, SPLITS, RECIPE, engine=engine)
    for name in ("snip", "grasp", "force", "prospr", "ntk-sap"):
        with pytest.raises(UserError, match=says):
            metrics.METRICS[name](model, mask, batch)


def test_a_network_that_fails_in_train_mode_alone_is_a_sentence():
    model = Own(lambda m, x, h, d: m.encode(x) if not m.training else x.nothing)
    with pytest.raises(
        UserError,
        match="^the network fails in train mode: 'Tensor' object has no attribute 'nothing'",
    ):
        training.train(model, some_mask(model), SPLITS, RECIPE)
    model = Own(lambda m, x, h, d: m.encode(x) if not m.training else m.encode(x).exp_().square_())
    with pytest.raises(
        UserError,
        match="^the network fails in train mode: one of the variables needed for gradient",
    ):
        training.train(model, some_mask(model), SPLITS, RECIPE)


def test_what_hangs_on_a_network_and_can_not_be_copied():
    def make():
        model = mlp()
        model.seen = model[1].weight * 2  # no leaf
        return model

    with pytest.raises(UserError, match="^compaction cannot copy this network: "):
        compaction.compact(make(), some_mask(make()))
    assert assert_trained_alike(make)[0] == "sparse"


def test_weights_of_five_dimensions_keep_their_layout():
    def make():
        torch.manual_seed(0)
        layers = nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3)), nn.ReLU(), nn.Flatten()
        model = nn.Sequential(*layers, nn.Linear(64, 4))
        model.input_shape = (1, 6, 6)
        model.register_forward_hook(lambda *_: None)  # what is trained is the network itself
        return model

    assert_trained_alike(make, engine="dense")
