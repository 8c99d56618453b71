"""Training: pruned weights stay exactly 0, a seed is all that matters, and the test set decides
nothing.
"""

import copy
import dataclasses
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from panning_core import data, masks, metrics, models, sparse, training
from panning_core.errors import UserError
from panning_core.inspection import layouts
from panning_core.training import Recipe

SHORT = Recipe(epochs=2, batch_size=128, weight_decay=5e-4)


@pytest.fixture(scope="module")
def small():
    """Three classes of 2x6x6 images in float64, for the residual network; 57 to train on, so that a
    step of 1 is left over.
    """
    x = (
        np.random.default_rng(0).normal(size=(93, 2, 6, 6))
        + (np.arange(93) % 3)[:, None, None, None] * 0.7
    )
    splits = data.from_arrays(x[:63], np.arange(63) % 3, x[63:], np.arange(30) % 3)
    return dataclasses.replace(
        splits,
        **{
            part: dataclasses.replace(getattr(splits, part), x=getattr(splits, part).x.double())
            for part in ("train", "validation", "test")
        },
    )


def random_mask(model, density=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return masks.keep_top(
        {n: torch.rand(w.shape, generator=generator) for n, w in models.prunable(model).items()},
        density,
    )


def build(digits, seed=0):
    return models.build("lenet300", digits.input_shape, digits.classes, seed)


def trained(digits, recipe=SHORT, seed=0, density=0.1, splits=None):
    model = build(digits, seed)
    mask = random_mask(model, density)
    log = training.train(model, mask, splits or digits, recipe, engine="dense")
    return model, mask, log


def same_bits(one, two):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values())
    )


class Watch(training.Dense):
    """The dense engine, looked at after every step."""

    steps: list

    def step(self, x, y, lr):
        loss = super().step(x, y, lr)
        weights = models.prunable(self.model)
        off = [
            float(tensor[~m].abs().sum())
            for name, m in self.mask.items()
            for tensor in (
                weights[name].detach(),
                self.optimiser.state[weights[name]].get("momentum_buffer"),
            )
            if tensor is not None
        ]
        buffers = sum("momentum_buffer" in self.optimiser.state[w] for w in weights.values())
        self.steps.append(
            {
                "lr": lr,
                "off": off,
                "buffers": buffers,
                "y": y.clone(),
                "loss": float(loss),
                "sizes": {name: tuple(weight.shape) for name, weight in weights.items()},
            }
        )
        return loss


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(Watch, "steps", [], raising=False)
    monkeypatch.setitem(training.ENGINES, "dense", Watch)
    return Watch.steps


# --- pruned weights ---


@pytest.mark.parametrize(
    "change", [{}, {"nesterov": True}, {"weight_decay": 0.1, "lr": 0.5}, {"decay": "steps"}]
)
def test_a_pruned_weight_and_its_momentum_are_0_after_every_step(change, digits, watch):
    model, mask, _ = trained(digits, dataclasses.replace(SHORT, **change))
    assert len(watch) == 2 * math.ceil(len(digits.train) / 128)
    assert all(step["buffers"] == 3 and step["off"] == [0.0] * 6 for step in watch)
    start = build(digits)
    for name, weight in models.prunable(model).items():
        assert (weight[~mask[name]] == 0).all()
        assert not torch.equal(
            weight[mask[name]], models.prunable(start)[name][mask[name]]
        )  # the kept ones are trained


def test_the_same_with_batchnorm_and_shortcuts(small, residual, watch):
    residual.train()
    mask = random_mask(residual, 0.3)
    training.train(residual, mask, small, Recipe(epochs=3, batch_size=16), engine="dense")
    assert len(watch) == 3 * 4 and all(
        step["buffers"] == 5 and step["off"] == [0.0] * 10 for step in watch
    )


def test_biases_and_batchnorm_are_trained(small, residual):
    before = {name: p.clone() for name, p in residual.named_parameters()}
    training.train(
        residual, random_mask(residual, 0.5), small, Recipe(epochs=1, batch_size=16), engine="dense"
    )
    assert not any(torch.equal(p, before[name]) for name, p in residual.named_parameters())


def test_a_step_is_sgd_as_it_is_written_down(small, residual):
    """v <- momentum v + g + decay w; w <- w - lr (g + decay w + momentum v) with Nesterov, else w -
    lr v.
    """
    for nesterov in (False, True):
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
        mask = {"1.weight": torch.rand(3, 72) < 0.5}
        engine = training.Dense(
            model, mask, Recipe(momentum=0.8, weight_decay=0.01, nesterov=nesterov)
        )
        w, b = (p.detach().clone() for p in model.parameters())
        velocity = [torch.zeros_like(w), torch.zeros_like(b)]
        assert torch.equal(w, w * mask["1.weight"]) and (w[mask["1.weight"]] != 0).all()
        for t in range(3):
            x, y, lr = (
                small.train.x[t * 9 : t * 9 + 9],
                small.train.y[t * 9 : t * 9 + 9],
                0.1 / (t + 1),
            )
            p = torch.softmax(x.flatten(1) @ w.T + b, 1)
            error = (p - nn.functional.one_hot(y, 3)) / len(y)
            loss = engine.step(x, y, lr)
            assert float(loss) == pytest.approx(float(-p[torch.arange(9), y].log().mean()))
            for i, (parameter, g) in enumerate(
                ((w, error.T @ x.flatten(1) * mask["1.weight"]), (b, error.sum(0)))
            ):
                g = g + 0.01 * parameter
                velocity[i] = 0.8 * velocity[i] + g
                parameter -= lr * (g + 0.8 * velocity[i] if nesterov else velocity[i])
            assert torch.allclose(model[1].weight, w, rtol=1e-10) and torch.allclose(
                model[1].bias, b, rtol=1e-10
            )


# --- seeds ---


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_random_state_alone(digits):
    recipe = dataclasses.replace(SHORT, augment=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, _, log = trained(digits, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    two, _, again = trained(digits, recipe)
    assert same_bits(one, two) and log.equals(again)
    other = trained(digits, dataclasses.replace(recipe, seed=1))[0]
    assert not same_bits(one, other)
    assert not same_bits(one, trained(digits, SHORT)[0])  # without augmentation


def test_an_epoch_is_every_training_image_once_in_a_new_order(digits, watch):
    trained(digits)
    half = len(watch) // 2
    epochs = [torch.cat([step["y"] for step in part]) for part in (watch[:half], watch[half:])]
    assert [len(step["y"]) for step in watch[:half]] == [128] * 10 + [14]
    assert all(torch.equal(labels.sort().values, digits.train.y.sort().values) for labels in epochs)
    assert not torch.equal(*epochs) and not torch.equal(epochs[0], digits.train.y)


def test_the_test_set_decides_nothing(digits):
    turned = dataclasses.replace(
        digits,
        test=dataclasses.replace(digits.test, x=digits.test.x.flip(0) * 3, y=9 - digits.test.y),
    )
    one, _, log = trained(digits)
    two, _, other = trained(digits, splits=turned)
    assert same_bits(one, two)
    assert log.drop(columns="test_accuracy").equals(other.drop(columns="test_accuracy"))
    assert not log.test_accuracy.equals(other.test_accuracy)


def test_nor_does_the_validation_set(digits):
    turned = dataclasses.replace(
        digits, validation=dataclasses.replace(digits.validation, y=9 - digits.validation.y)
    )
    assert same_bits(trained(digits)[0], trained(digits, splits=turned)[0])


# --- the log and the learning ---


def test_a_dense_network_learns_the_digits(digits):
    model, _, log = trained(digits, Recipe(epochs=4, batch_size=64), density=1.0)
    assert log.columns.tolist() == [
        "epoch",
        "loss",
        "validation_accuracy",
        "test_accuracy",
    ] and log.epoch.tolist() == [1, 2, 3, 4]
    assert log.loss.is_monotonic_decreasing and log.loss.iloc[-1] < 0.2
    assert log.test_accuracy.iloc[-1] > 0.9 and log.validation_accuracy.iloc[-1] > 0.9
    model.eval()
    right = sum(
        int(model(x[None]).argmax()) == int(y) for x, y in zip(digits.test.x, digits.test.y)
    )
    assert (
        log.test_accuracy.iloc[-1] == pytest.approx(right / 360) and log.attrs["engine"] == "dense"
    )


def test_the_loss_of_an_epoch_is_the_mean_over_images(digits, watch):
    _, _, log = trained(digits)
    first = watch[: len(watch) // 2]
    assert log.loss[0] == pytest.approx(
        sum(s["loss"] * len(s["y"]) for s in first) / len(digits.train)
    )


def test_measuring_does_not_train_batchnorm(small, residual):
    mask = masks.ones(residual)
    engine = training.Dense(residual, mask, Recipe())
    engine.step(*(t[:16] for t in (small.train.x, small.train.y)), lr=0.1)
    before = {name: t.clone() for name, t in residual.state_dict().items()}
    engine.logits(small.test.x)
    assert all(torch.equal(t, before[name]) for name, t in residual.state_dict().items())


@pytest.mark.parametrize(
    "decay, table",
    [
        ("cosine", {0: 1.0, 40: 0.8535533905932737, 80: 0.5, 120: 0.14644660940672627, 160: 0.0}),
        ("steps", {0: 1.0, 59: 1.0, 60: 0.1, 119: 0.1, 120: 0.01, 159: 0.01}),
    ],
)
def test_decays(decay, table):
    assert {t: training.DECAYS[decay](t, 160) for t in table} == pytest.approx(table, abs=1e-15)


@pytest.mark.parametrize(
    "decay, factors",
    [
        (
            "cosine",
            [
                1.0,
                0.9619397662556434,
                0.8535533905932737,
                0.6913417161825449,
                0.5,
                0.3086582838174551,
                0.14644660940672627,
                0.03806023374435663,
            ],
        ),
        ("steps", [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_training_follows_the_decay(decay, factors, digits, watch):
    trained(digits, Recipe(epochs=2, batch_size=350, lr=0.2, decay=decay))
    assert [step["lr"] for step in watch] == pytest.approx([0.2 * f for f in factors])


def test_the_rate_rises_in_a_line_while_a_training_warms_up(digits, watch):
    trained(digits, Recipe(epochs=2, batch_size=350, lr=0.2, decay="constant", warm_up=1))
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [step["lr"] for step in watch] == pytest.approx([0.2 * f for f in factors])
    with pytest.raises(UserError, match="warm_up is 3 of 2 epochs"):
        Recipe(epochs=2, warm_up=3)


def test_a_run_that_diverges_ends_there_and_says_so(digits):
    model, mask, log = trained(
        digits, dataclasses.replace(SHORT, epochs=6, lr=1e6, weight_decay=5e-4)
    )
    assert (
        not math.isfinite(log.loss.iloc[-1])
        and log.loss[:-1].map(math.isfinite).all()
        and len(log) < 6
    )
    assert all((w[~mask[name]] == 0).all() for name, w in models.prunable(model).items())
    assert any(not w.isfinite().all() for w in models.prunable(model).values())


# --- what is trained, and with what ---


class Own(nn.Module):
    """A user's own network of one input channel: no ``Sequential``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(80, 10)
        self.input_shape = (1, 8, 8)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x).relu()).relu().flatten(1))


def test_dead_units_are_not_trained_and_change_nothing(digits, watch):
    """A mask with 60 dead units in the first layer: what is left trains as in the whole network,
    and what goes stays as it was.
    """
    model, splits = (
        build(digits).double(),
        dataclasses.replace(
            digits,
            **{
                part: dataclasses.replace(getattr(digits, part), x=getattr(digits, part).x.double())
                for part in ("train", "validation", "test")
            },
        ),
    )
    mask = random_mask(model, 0.5)
    mask["fc2.weight"][:, :60] = False
    start, whole = copy.deepcopy(model), copy.deepcopy(model)
    training.train(model, mask, splits, SHORT, engine="dense")
    assert watch[0]["sizes"]["fc1.weight"] == (240, 64) and watch[0]["sizes"]["fc2.weight"] == (
        100,
        240,
    )
    assert torch.equal(model.fc1.bias[:60], start.fc1.bias[:60]) and not torch.equal(
        model.fc1.bias[60:], start.fc1.bias[60:]
    )
    assert all(not weight[~mask[name]].any() for name, weight in models.prunable(model).items())
    engine = training.Dense(whole, mask, SHORT)
    for steps in training.epochs(splits.train, SHORT):
        for step in steps:
            engine.step(*step)
    for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"):
        live = slice(60 if part.startswith("fc1") else 0, None)
        torch.testing.assert_close(
            model.get_parameter(part)[live], whole.get_parameter(part)[live], rtol=1e-9, atol=1e-12
        )


def test_a_network_that_compaction_can_not_read_is_trained_whole(digits, watch):
    torch.manual_seed(0)
    model = Own()
    mask = random_mask(model, 0.5)
    log = training.train(model, mask, digits, SHORT)
    assert (
        log.loss[1] < log.loss[0]
        and log.attrs["engine"] == "dense"
        and all(step["off"] == [0.0] * 6 for step in watch)
    )
    assert all(
        weight.is_contiguous() and not weight[~mask[name]].any()
        for name, weight in models.prunable(model).items()
    )


def test_the_engine_is_chosen_by_the_density_of_what_is_left(digits, monkeypatch):
    """About half of the weights are kept; without the dead units it is all of them."""
    monkeypatch.setattr(training.engines, "SPARSE_BELOW", 0.6)
    monkeypatch.setattr(sparse, "unsupported", lambda model: None)
    model = build(digits)
    mask = masks.ones(model)
    mask["fc2.weight"][:, :250] = False
    assert masks.density(mask) < 0.6 and training.engines.choose(model, mask).engine == "sparse"
    assert training.train(model, mask, digits, SHORT).attrs["engine"] == "dense"
    convolutional = models.build("lenet5", (1, 28, 28), 10, 0)
    few = masks.ones(convolutional)
    few["fc1.weight"][:] = False  # 93 % of the weights, 17 % of the multiply-adds
    assert (
        masks.density(few) < 0.1 and training.engines.choose(convolutional, few).engine == "dense"
    )


def test_the_sparse_engine_trains_what_is_left_and_the_rest_stays(digits):
    pytest.importorskip("numba")
    trained_by = {}
    for engine in ("sparse", "dense"):
        trained_by[engine] = model = build(digits)
        mask = random_mask(model, 0.1)
        mask["fc2.weight"][:, :60] = False
        log = training.train(
            model, mask, digits, SHORT, engine=None if engine == "sparse" else engine
        )
        assert log.attrs["engine"] == engine
        assert torch.equal(model.fc1.bias[:60], build(digits).fc1.bias[:60])
    for one, two in zip(*(model.parameters() for model in trained_by.values())):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_without_numba_the_dense_engine_trains_and_says_so(digits, monkeypatch):
    monkeypatch.setattr(sparse, "unsupported", lambda model: "numba is not installed")
    model = build(digits)
    with pytest.warns(
        UserWarning, match="dense engine, which is slower: numba is not installed"
    ) as told:
        log = training.train(model, random_mask(model, 0.1), digits, SHORT)
    assert log.attrs["engine"] == "dense" and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.train(
            model, random_mask(model, 0.9), digits, SHORT
        )  # nothing is lost, nothing to say


def test_matrix_products_are_true_float32_and_the_setting_is_left_alone():
    set_before = torch.get_float32_matmul_precision()
    assert set_before == "highest"  # or an earlier test has left its own
    a, b = torch.randn((2, 300, 400), generator=torch.Generator().manual_seed(1))
    with pytest.raises(KeyError), training.fast_products(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() in ("medium", "highest")
        exact = a.double() @ b.double().T
        assert (a @ b.T - exact).norm() < 2e-6 * exact.norm()
        raise KeyError
    assert torch.get_float32_matmul_precision() == set_before
    with training.fast_products(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == set_before


def test_training_leaves_the_setting_alone_too(digits, monkeypatch, watch):
    monkeypatch.setattr(training.precision, "_product_precision", lambda: "medium")
    seen = []
    monkeypatch.setattr(
        training.losses,
        "accuracy",
        lambda logits, y: seen.append(torch.get_float32_matmul_precision()) or 0.0,
    )
    trained(digits)
    assert seen == ["medium"] * 4 and torch.get_float32_matmul_precision() == "highest"


def test_convolutions_are_trained_in_the_fast_layout_with_the_same_results(
    small, residual, monkeypatch
):
    # Its shortcut is narrow, but of float64, for which PyTorch does without oneDNN.
    monkeypatch.setattr(layouts, "BLOCK", 0)
    mask, step = random_mask(residual, 0.5), (small.train.x[:16], small.train.y[:16], 0.1)
    engine, plain = (
        training.Dense(copy.deepcopy(residual), mask, SHORT),
        training.Dense(residual, mask, SHORT),
    )
    plain.store()
    assert (
        engine.model[0].weight.is_contiguous(memory_format=torch.channels_last)
        and plain.model[0].weight.is_contiguous()
    )
    for _ in range(3):
        assert float(engine.step(*step)) == pytest.approx(float(plain.step(*step)), rel=1e-12)
    torch.testing.assert_close(
        engine.logits(small.test.x), plain.logits(small.test.x), rtol=1e-9, atol=1e-9
    )


def test_a_processor_whose_fast_products_are_not_float32_is_found(monkeypatch):
    rounded = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: (
            rounded(a, b)
            if a.dtype == torch.double
            else rounded(a.bfloat16(), b.bfloat16()).float()
        ),
    )
    with training.fast_products(torch.device("cuda")):  # it leaves the setting as it was
        assert training.precision._product_precision.__wrapped__() == "highest"


# --- bad input ---


def test_another_networks_mask_is_an_error(digits, residual):
    model = build(digits)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UserError, match="another network"):
        training.train(model, masks.ones(residual), digits, SHORT, engine="dense")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_an_observer_sees_every_epoch_and_changes_nothing(digits):
    rows, model = [], build(digits)
    log = training.train(
        model, random_mask(model), digits, SHORT, engine="dense", observe=rows.append
    )
    assert pd.DataFrame(rows).equals(log)
    other, _, _ = trained(digits)
    assert same_bits(model, other)


def test_what_an_observer_raises_ends_the_training(digits):
    class Enough(Exception):
        pass

    def observe(row):
        rows.append(row)
        if row["epoch"] == 2:
            raise Enough

    rows, model = [], build(digits)
    with pytest.raises(Enough):
        training.train(
            model, random_mask(model), digits, dataclasses.replace(SHORT, epochs=9), observe=observe
        )
    assert [row["epoch"] for row in rows] == [1, 2]


def test_an_unknown_engine_offers_near_names(digits):
    model = build(digits)
    with pytest.raises(UserError, match="unknown engine 'dens'; did you mean 'dense'"):
        training.train(model, masks.ones(model), digits, SHORT, engine="dens")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"decay": "cosinus"}, "unknown decay 'cosinus'; did you mean 'cosine'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'.*'bf16'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
    ],
)
def test_bad_recipes_are_named(change, says):
    with pytest.raises(UserError, match=says):
        Recipe(**change)
    with pytest.raises(UserError, match=says):
        dataclasses.replace(SHORT, **change)


def test_bf16_learns_as_well(digits):
    """Autocast on the CPU stands in for CUDA: weights stay float32, and pruned ones 0."""
    model = build(digits)
    mask = masks.keep_top(metrics.magnitude(model, None, None), 0.5, "layerwise")
    log = training.train(model, mask, digits, Recipe(epochs=10, precision="bf16"))
    assert log.attrs["engine"] == "dense" and log.validation_accuracy.iloc[-1] > 0.9
    for name, weight in models.prunable(model).items():
        assert weight.dtype == torch.float32 and not weight[~mask[name]].any()


def test_the_published_recipes():
    r = training.RECIPES
    assert (
        r["mnist"].epochs,
        r["mnist"].batch_size,
        r["mnist"].lr,
        r["mnist"].momentum,
        r["mnist"].weight_decay,
    ) == (80, 256, 0.1, 0.9, 1e-4)
    assert r["fashion-mnist"] == dataclasses.replace(r["mnist"], augment=True)
    assert (
        r["cifar"].epochs,
        r["cifar"].batch_size,
        r["cifar"].weight_decay,
        r["cifar"].augment,
        r["cifar"].decay,
    ) == (180, 128, 5e-4, True, "cosine")
    assert (
        r["synflow-cifar"].epochs,
        r["synflow-cifar"].nesterov,
        r["synflow-cifar"].decay,
        r["synflow-cifar"].weight_decay,
    ) == (160, True, "steps", 1e-4)


def test_networks_trained_together_learn_what_they_learn_alone(digits):
    pytest.importorskip("numba")
    networks, pruned = [build(digits) for _ in range(4)], []
    for density, network in zip((1.0, 0.3, 0.02, 0.3), networks):
        pruned.append(masks.effective(network, random_mask(network, density)))
    networks[3].get_parameter("fc3.bias").data.fill_(
        torch.nan
    )  # diverges at once, and disturbs no other
    alone = copy.deepcopy(networks)
    together = training.train_together(networks, pruned, digits, SHORT)
    assert [log.attrs["engine"] for log in together] == [
        "dense",
        "sparse",
        "sparse",
        "sparse",
    ] and len(together[3]) == 1
    for network, log, one, mask in zip(networks, together, alone, pruned):
        pd.testing.assert_frame_equal(log, training.train(one, mask, digits, SHORT))
        assert all(
            torch.equal(w, v) or w.isnan().any()
            for w, v in zip(network.state_dict().values(), one.state_dict().values())
        )
