"""The open trainer: masks that change, other optimisers and losses, resuming, and what it costs."""

import copy
import dataclasses

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.training import Recipe, stacked

RECIPE = Recipe(epochs=2, batch_size=300, lr=0.05, weight_decay=1e-3)
STEPS = 10


@pytest.fixture(scope="module")
def splits():
    return data.load("digits")


def build(seed=0):
    return models.build("lenet300", (1, 8, 8), 10, seed)


def some_mask(model, density=0.3, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    scores = {n: torch.rand(w.shape, generator=drawn) for n, w in models.prunable(model).items()}
    return masks.keep_top(scores, density)


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Watch:
    """A hook that changes nothing, or what ``change`` says, and remembers what it saw."""

    def __init__(self, change=lambda step, model, mask: mask):
        self.change, self.seen = change, []

    def __call__(self, step, model, mask):
        weights = models.prunable(model)
        self.seen.append(
            {
                "step": step,
                "mask": {name: m.clone() for name, m in mask.items()},
                "weights": {name: w.detach().clone() for name, w in weights.items()},
                "gradients": {name: w.grad.clone() for name, w in weights.items()},
            }
        )
        return self.change(step, model, mask)


class Regrow:
    """Every fourth step half of each layer's weights go, the smallest, and as many come, by
    gradient (Evci et al. 2020) or at random."""

    def __init__(self, seed=None):
        self.drawn = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, step, model, mask):
        if step % 4:
            return mask
        found = {}
        for name, weight in models.prunable(model).items():
            kept = masks.count({name: mask[name]})
            stays = weight.detach().abs().where(mask[name], -1.0)
            keep = masks.keep_top({name: stays}, (kept - kept // 2) / weight.numel())[name]
            by = weight.grad.abs() if self.drawn is None else self._random(weight)
            grown = masks.keep_top({name: by.where(~keep, -1.0)}, (kept // 2) / weight.numel())[
                name
            ]
            found[name] = keep | grown
        return found

    def _random(self, weight):
        return torch.rand(weight.shape, generator=self.drawn)

    def state_dict(self):
        return {} if self.drawn is None else {"drawn": self.drawn.get_state()}

    def load_state_dict(self, state):
        if self.drawn is not None:
            self.drawn.set_state(state["drawn"])


# --- a mask that changes ---


def test_a_hook_that_changes_nothing_changes_no_bit(splits):
    one, two, watch = build(), build(), Watch()
    # No unit is dead, so that the same network is trained.
    mask = some_mask(one, 0.8)
    plain = training.train(one, mask, splits, RECIPE, engine="dense")
    log = training.train(two, mask, splits, RECIPE, update=watch)
    assert same(one, two) and log[plain.columns].equals(plain)
    assert [each["step"] for each in watch.seen] == list(range(1, STEPS + 1))
    assert log.density.tolist() == [masks.density(mask)] * 2
    assert log.attrs["mask"].keys() == mask.keys()
    assert all(torch.equal(m, mask[name]) for name, m in log.attrs["mask"].items())
    assert log.attrs["training_flops"] == plain.attrs["training_flops"]


def test_the_hook_sees_the_dense_gradient_at_the_weights_before_the_step(splits):
    model, watch = build(), Watch()
    mask = some_mask(model)
    start = copy.deepcopy(model)
    for name, weight in models.prunable(start).items():
        weight.data[~mask[name]] = 0.0
    training.train(model, mask, splits, RECIPE, update=watch)
    x, y, _ = next(next(training.epochs(splits.train, RECIPE)))
    functional.cross_entropy(start(x), y).backward()
    for name, weight in models.prunable(start).items():
        found = watch.seen[0]["gradients"][name]
        torch.testing.assert_close(found, weight.grad, rtol=1e-5, atol=1e-8)
        assert found[~mask[name]].any()


def test_masks_that_change_train_as_a_loop_written_down(splits):
    """SGD by hand: momentum of what enters or leaves becomes 0, and of what is regrown it stays."""
    model, oracle = build(), build()
    mask = some_mask(model, 0.1)
    log = training.train(model, mask, splits, RECIPE, update=Regrow())
    hook, step = Regrow(), 0
    kept = {name: m.clone() for name, m in mask.items()}
    weights, velocity = models.prunable(oracle), {}
    for name, weight in weights.items():
        weight.data *= kept[name]
    for steps in training.epochs(splits.train, RECIPE):
        for x, y, lr in steps:
            oracle.zero_grad()
            functional.cross_entropy(oracle(x), y).backward()
            step += 1
            for name, p in oracle.named_parameters():
                gradient = p.grad * kept[name] if name in kept else p.grad
                gradient = gradient + RECIPE.weight_decay * p.detach()
                velocity[name] = 0.9 * velocity.get(name, 0.0) + gradient
                p.data -= lr * velocity[name]
            new = hook(step, oracle, kept)
            for name, weight in weights.items():
                velocity[name][new[name] != kept[name]] = 0.0
                weight.data[~new[name]] = 0.0
            kept = new
    for one, two in zip(model.parameters(), oracle.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for name, m in log.attrs["mask"].items():
        assert (m == kept[name]).double().mean() > 0.999


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_weights_that_enter_or_leave_are_0_and_so_is_what_the_optimiser_keeps(
    optimiser, splits, monkeypatch
):
    states = []

    class Seen(training.Moving):
        def _follow(self, mask):
            super()._follow(mask)
            states.append({n: copy.deepcopy(self.optimiser.state[w]) for n, w in self.named()})

        def named(self):
            return models.prunable(self.model).items()

    def swap(step, model, mask):
        return {**mask, "fc2.weight": ~mask["fc2.weight"]} if step == 3 else mask

    monkeypatch.setattr(training.engines, "Moving", Seen)
    watch, model = Watch(swap), build()
    mask = some_mask(model, 0.5)
    training.train(model, mask, splits, RECIPE, optimiser=optimiser, update=watch)
    kept = mask["fc2.weight"]
    for buffer in ["momentum_buffer"] if optimiser == "sgd" else ["exp_avg", "exp_avg_sq"]:
        before, after = (states[step]["fc2.weight"][buffer] for step in (1, 2))
        assert before[kept].any() and not before[~kept].any() and not after.any()
        assert states[2]["fc1.weight"][buffer].any()
    later = watch.seen[3]["weights"]["fc2.weight"]
    assert not later[kept].any() and later[~kept].any()
    assert not model.fc2.weight[kept].any()


def test_a_mask_changed_in_place_counts_and_the_callers_stays(splits):
    model = build()
    mask = some_mask(model, 0.5)
    before = {name: m.clone() for name, m in mask.items()}

    def drop(step, model, mask):
        mask["fc1.weight"][0] = False
        return mask

    log = training.train(model, mask, splits, RECIPE, update=drop)
    assert not model.fc1.weight[0].any() and model.fc1.weight[1].any()
    assert all(torch.equal(m, before[name]) for name, m in mask.items())
    assert log.density.iloc[-1] == masks.density(log.attrs["mask"]) < masks.density(mask)


def test_a_weight_that_enters_begins_at_what_the_hook_wrote(splits):
    def grow(step, model, mask):
        if step == 1:
            mask["fc1.weight"][:] = True
            with torch.no_grad():
                model.fc1.weight[0] = 7.0
                model.fc2.weight[:] = 7.0
        return mask

    watch, model = Watch(grow), build()
    mask = some_mask(model, 0.5)
    training.train(model, mask, splits, RECIPE, update=watch)
    seen = watch.seen[1]["weights"]
    assert (seen["fc1.weight"][0] > 6.5).all()
    assert not seen["fc2.weight"][~mask["fc2.weight"]].any()


def test_dead_units_can_be_revived(splits):
    """With a hook the network itself is trained, not one without its dead units."""
    model = build()
    mask = masks.ones(model)
    mask["fc2.weight"][:, :60] = False

    def revive(step, model, mask):
        return masks.ones(model) if step == 2 else mask

    training.train(model, mask, splits, RECIPE, update=revive)
    assert (model.fc2.weight[:, :60] != 0).any(0).sum() > 50


def test_a_hook_leaves_the_global_random_state_alone_and_follows_the_seed(splits):
    def random(step, model, mask):
        return {name: torch.rand(m.shape) < 0.2 for name, m in mask.items()}

    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = build()
        found.append(training.train(model, masks.ones(model), splits, RECIPE, update=random))
        assert torch.equal(before, torch.get_rng_state())
    assert found[0].equals(found[1])


def test_tables_with_masks_can_be_joined_and_copied(splits):
    logs = []
    for seed in (0, 1):
        model = build(seed)
        logs.append(training.train(model, some_mask(model), splits, RECIPE, update=Watch()))
    assert len(pd.concat(logs)) == 4
    assert logs[0].copy().attrs["mask"] is logs[0].attrs["mask"]


@pytest.mark.parametrize(
    "update, says",
    [
        (3, r"update is 3; it must be a function \(step, model, mask\) -> mask"),
        (lambda step, model, mask: None, "update gives None at step 1; it must return the mask"),
        (lambda step, model, mask: [], r"update gives \[\] at step 1; it must return the mask"),
        (lambda step, model, mask: {}, "the mask is of another network: it lacks fc1.weight"),
        (
            lambda step, model, mask: {name: m.float() for name, m in mask.items()},
            "fc1.weight is torch.float32; a mask is boolean",
        ),
    ],
)
def test_hooks_that_are_none_are_named(update, says, splits):
    model = build()
    with pytest.raises(UserError, match=says):
        training.train(model, some_mask(model), splits, RECIPE, update=update)


# --- optimisers ---


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_adam_is_pytorchs(density, splits):
    model, oracle = build(), build()
    mask = masks.effective(model, some_mask(model, density))
    recipe = dataclasses.replace(RECIPE, lr=1e-3)
    log = training.train(model, mask, splits, recipe, optimiser="adam")
    assert log.attrs["engine"] == "dense"
    assert log.attrs["reason"] == "the optimiser is adam, and the sparse engine knows SGD alone"
    adam = torch.optim.Adam(oracle.parameters(), 1e-3, weight_decay=recipe.weight_decay)
    for name, weight in models.prunable(oracle).items():
        weight.data *= mask[name]
    for steps in training.epochs(splits.train, recipe):
        for x, y, lr in steps:
            adam.param_groups[0]["lr"] = lr
            adam.zero_grad()
            functional.cross_entropy(oracle(x), y).backward()
            for name, weight in models.prunable(oracle).items():
                weight.grad *= mask[name]
            adam.step()
    assert sum(map(len, (mask["fc1.weight"],))) == 300
    for name, weight in models.prunable(oracle).items():
        found = models.prunable(model)[name]
        assert not found[~mask[name]].any()
        torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)


def test_a_factory_of_sgd_is_sgd(splits):
    one, two = build(), build()
    mask = masks.ones(one)
    training.train(one, mask, splits, RECIPE, engine="dense")
    log = training.train(
        two,
        mask,
        splits,
        dataclasses.replace(RECIPE, lr=1.0),
        optimiser=lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=1e-3),
    )
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert log.attrs["engine"] == "dense" and "the optimiser is <lambda>" in log.attrs["reason"]


class Restless(torch.optim.SGD):
    """Moves every weight at random, as Langevin dynamics does."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p += 0.01 * torch.randn_like(p)


def test_pruned_weights_stay_0_whatever_the_optimiser_does(splits):
    models_of = []
    for update in (None, None, Watch()):
        model = build()
        mask = some_mask(model, 0.1)
        training.train(
            model, mask, splits, RECIPE, optimiser=lambda p: Restless(p, 0.05), update=update
        )
        for name, weight in models.prunable(model).items():
            assert not weight[~mask[name]].any() and weight[mask[name]].all()
        models_of.append(model)
    assert same(*models_of[:2]) and same(*models_of[1:])
    assert all(not s["weights"][n][~m].any() for s in update.seen for n, m in mask.items())


@pytest.mark.parametrize(
    "optimiser, says",
    [
        ("adma", "unknown optimiser 'adma'; did you mean 'adam'"),
        (0.1, "optimiser is 0.1; it must be one of sgd, adam or a function"),
        (lambda p: None, "the optimiser's factory gives None; it must give a torch.optim.Optim"),
        (torch.optim.LBFGS, "LBFGS evaluates a batch several times a step"),
    ],
)
def test_optimisers_that_are_none_are_named(optimiser, says, splits):
    model = build()
    with pytest.raises(UserError, match=says):
        training.train(model, masks.ones(model), splits, RECIPE, optimiser=optimiser)


# --- losses ---


def by_hand(model, splits, loss):
    """Plain SGD on a dense network."""
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3)
    for steps in training.epochs(splits.train, RECIPE):
        for x, y, lr in steps:
            optimiser.param_groups[0]["lr"] = lr
            optimiser.zero_grad()
            loss(model(x), y).backward()
            optimiser.step()
    return model


def hot(y):
    return functional.one_hot(y, 10).float()


@pytest.mark.parametrize(
    "loss, function",
    [
        ("bce", lambda o, y: functional.binary_cross_entropy_with_logits(o, hot(y))),
        ("mse", lambda o, y: ((o - hot(y)) ** 2).mean()),
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    ],
)
def test_losses_are_what_their_names_say(loss, function, splits):
    model = build()
    log = training.train(model, masks.ones(model), splits, RECIPE, loss=loss)
    for a, b in zip(model.parameters(), by_hand(build(), splits, function).parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert "the loss is" in log.attrs["reason"] and log.loss[1] < log.loss[0]


def test_soft_labels(splits):
    """One-hot labels train as labels do; the largest counts for accuracy."""
    soft = dataclasses.replace(
        splits, train=dataclasses.replace(splits.train, y=hot(splits.train.y))
    )
    one, two = build(), build()
    mask = some_mask(one)
    plain = training.train(one, mask, splits, RECIPE, engine="dense")
    log = training.train(two, mask, soft, RECIPE)
    assert log.attrs["reason"].startswith("the labels are soft")
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(log, plain, rtol=1e-4)
    assert training.accuracy(torch.eye(3), torch.tensor([[0.4, 0.3, 0.3]] * 3)) == 1 / 3
    for wrong in (hot(splits.train.y)[:, :4], hot(splits.train.y)[:5], hot(splits.train.y) / 0):
        bad = dataclasses.replace(splits, train=dataclasses.replace(splits.train, y=wrong))
        with pytest.raises(UserError, match=r"soft labels are .*; they must be \[1294, 10\] fini"):
            training.train(build(), mask, bad, RECIPE)


@pytest.mark.parametrize(
    "loss, says",
    [
        ("cross_entropy", "unknown loss 'cross_entropy'; did you mean 'cross-entropy'"),
        (None, "loss is None; it must be one of cross-entropy, bce, mse or a function"),
        (lambda o, y: 1.0, "the loss gives 1.0; it must be one number, a tensor made of the out"),
        (lambda o, y: o.sum(1), r"the loss gives a tensor of shape \[2\] that depends"),
        (lambda o, y: o.detach().sum(), r"tensor of shape \[\] that does not depend"),
    ],
)
def test_losses_that_are_none_are_named(loss, says, splits):
    model = build()
    before = copy.deepcopy(model)
    with pytest.raises(UserError, match=says):
        training.train(model, masks.ones(model), splits, RECIPE, loss=loss)
    assert same(model, before)


# --- engines ---


def test_the_sparse_engine_trains_where_it_applies_and_the_log_says_why(splits):
    pytest.importorskip("numba")
    found = {}
    for name, options in {
        "few": {},
        "asked": {"engine": "dense"},
        "hook": {"update": Watch()},
        "bf16": {"recipe": dataclasses.replace(RECIPE, precision="bf16")},
    }.items():
        model = build()
        options = {"recipe": RECIPE, **options}
        found[name] = training.train(model, some_mask(model, 0.1), splits, **options).attrs
    dense = build()
    found["all"] = training.train(dense, masks.ones(dense), splits, RECIPE).attrs
    assert [each["engine"] for each in found.values()] == ["sparse"] + ["dense"] * 4
    reasons = {name: each["reason"] for name, each in found.items()}
    assert "of the multiply-adds are left, and it pays below 80%" in reasons["few"]
    assert reasons["asked"] == "it was asked for"
    assert reasons["hook"] == "the mask may change while it trains"
    assert reasons["bf16"] == "the precision is bf16, and the sparse engine knows fp32 alone"
    assert reasons["all"].startswith("100.00% of the multiply-adds are left")
    with pytest.raises(UserError, match="sparse engine can not train this network: the mask may"):
        training.train(build(), some_mask(dense), splits, RECIPE, "sparse", update=Watch())
    rounded = dataclasses.replace(RECIPE, precision="bf16")
    with pytest.raises(UserError, match="can not train this network: the precision is bf16"):
        training.train(build(), some_mask(dense), splits, rounded, "sparse")


@pytest.mark.parametrize(
    "options",
    [{"engine": "dense"}, {"update": lambda step, model, mask: mask}, {"optimiser": "adam"}],
)
def test_frozen_parameters_stay(options, splits):
    model = build()
    start, mask = copy.deepcopy(model), some_mask(model)
    model.fc1.requires_grad_(False)
    log = training.train(model, mask, splits, RECIPE, **options)
    assert torch.equal(model.fc1.bias, start.fc1.bias)
    assert torch.equal(model.fc1.weight, start.fc1.weight * mask["fc1.weight"])
    assert not torch.equal(model.fc2.bias, start.fc2.bias) and log.attrs["engine"] == "dense"


# --- resuming ---


class Stop(Exception):
    pass


def conv(seed=0):
    return models.build("resnet20", (1, 8, 8), 10, seed)


@pytest.mark.parametrize(
    "make, options",
    [
        (build, {"engine": "sparse"}),
        (build, {"engine": "dense"}),
        (conv, {"engine": "sparse"}),
        (build, {"optimiser": "adam", "loss": "mse"}),
        (build, {"update": Regrow}),
        (build, {"update": lambda: Regrow(seed=0), "optimiser": lambda p: Restless(p, 0.1)}),
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(make, options, splits, tmp_path):
    if options.get("engine") == "sparse":
        pytest.importorskip("numba")
    few = dataclasses.replace(
        splits,
        train=dataclasses.replace(splits.train, x=splits.train.x[:200], y=splits.train.y[:200]),
    )
    recipe = Recipe(epochs=4, batch_size=64, lr=0.02, augment=make is build)

    def run(**more):
        model = make()
        made = dict(options)
        if "update" in made:
            made["update"] = made["update"]()
        mask = masks.effective(model, some_mask(model, 0.2))
        return model, training.train(model, mask, few, recipe, **made, **more)

    def stop(row):
        seen.append(row["epoch"])
        if row["epoch"] in (1, 3):
            raise Stop

    path, seen = tmp_path / "training.checkpoint", []
    for _ in range(2):
        with pytest.raises(Stop):
            run(checkpoint=path, observe=stop)
        assert path.exists()
    model, log = run(checkpoint=str(path), observe=stop)
    other, whole = run()
    assert seen == [1, 2, 3, 4] and not list(tmp_path.iterdir())
    assert same(model, other) and log.equals(whole)
    assert log.attrs["training_flops"] == whole.attrs["training_flops"]
    if "update" in options:
        assert all(torch.equal(m, whole.attrs["mask"][n]) for n, m in log.attrs["mask"].items())


def test_a_run_that_had_diverged_does_not_go_on(splits, tmp_path):
    recipe = dataclasses.replace(RECIPE, lr=1e6, epochs=9)

    def stop(row):
        if row["loss"] != row["loss"]:
            raise Stop

    model = build()
    with pytest.raises(Stop):
        training.train(
            model, masks.ones(model), splits, recipe, observe=stop, checkpoint=tmp_path / "c"
        )
    model = build()
    log = training.train(model, masks.ones(model), splits, recipe, checkpoint=tmp_path / "c")
    assert len(log) < 9 and not (tmp_path / "c").exists()


def test_another_trainings_checkpoint_and_no_checkpoint_are_named(splits, tmp_path):
    path = tmp_path / "c"

    def stop(row):
        raise Stop

    def run(model=None, density=0.5, recipe=RECIPE, of=splits, **more):
        model = model or build()
        training.train(
            model, some_mask(model, density), of, recipe, checkpoint=path, observe=stop, **more
        )

    frozen = build()
    next(frozen.parameters()).requires_grad_(False)
    tested = dataclasses.replace(splits.test, y=(splits.test.y + 1) % splits.classes)

    def smooth(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1)

    def smoother(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.2)

    with pytest.raises(Stop):
        run(loss=smoother)
    with pytest.raises(UserError, match="c is the checkpoint of another training"):
        run(loss=smooth)
    path.unlink()
    with pytest.raises(Stop):
        run()
    for change in (
        {"model": build(1)},
        {"model": frozen},
        {"of": dataclasses.replace(splits, test=tested)},
        {"density": 0.4},
        {"recipe": dataclasses.replace(RECIPE, seed=1)},
        {"engine": "dense"},
        {"optimiser": "adam"},
        {"update": Regrow()},
    ):
        with pytest.raises(UserError, match="c is the checkpoint of another training; give the"):
            run(**change)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="c is not a readable checkpoint .*; delete it"):
        run()
    path.unlink()
    path = tmp_path / "absent" / "c"
    with pytest.raises(UserError, match="the checkpoint can not be written to .*absent"):
        run()
    path = 3
    with pytest.raises(UserError, match="checkpoint is 3; it must be the path of a file"):
        run()


# --- cost ---


def test_training_flops_are_three_forward_passes_of_the_kept_weights(splits):
    n = len(splits.train)
    for engine in (None, "dense"):
        model = build()
        mask = some_mask(model, 0.1)
        log = training.train(model, mask, splits, RECIPE, engine)
        assert log.attrs["training_flops"] == 2 * n * 3 * 2 * masks.count(mask)
    model = build()
    model.fc1.requires_grad_(False)
    log = training.train(model, masks.ones(model), splits, RECIPE)
    fc1, rest = 64 * 300, 300 * 100 + 100 * 10
    assert log.attrs["training_flops"] == 2 * n * 2 * (2 * fc1 + 3 * rest)


def test_flops_of_a_changing_mask_are_those_of_each_step(splits):
    """Three weights of fc1 stay from step 2 on; step 4 lets one in, by its gradient."""
    total = {"fc1": 64 * 300, "rest": 300 * 100 + 100 * 10}

    def change(step, model, mask):
        if step == 1:
            mask["fc1.weight"][:] = False
            mask["fc1.weight"][0, :3] = True
        if step == 4:
            mask["fc1.weight"][0, 3] = True
        return mask

    sizes = [len(y) for s in training.epochs(splits.train, RECIPE) for _, y, _ in s]
    kept = [total["fc1"]] + [3] * 3 + [4] * (len(sizes) - 4)

    def flops(dense):
        return sum(
            n * 2 * (2 * (k + total["rest"]) + (total["fc1"] if d else k) + total["rest"])
            for n, k, d in zip(sizes, kept, dense)
        )

    cases = {
        None: [step == 3 for step in range(len(sizes))],
        True: [True] * len(sizes),
        False: [False] * len(sizes),
    }
    for declared, dense in cases.items():

        def hook(step, model, mask):
            return change(step, model, mask)

        if declared is not None:
            hook.dense_gradients = declared
        model = build()
        log = training.train(model, masks.ones(model), splits, RECIPE, update=hook)
        assert log.attrs["training_flops"] == flops(dense)


def test_stacks_and_networks_together_say_their_cost_too(splits):
    found = [build(seed) for seed in (0, 1)]
    pruned = [some_mask(model, density) for model, density in zip(found, (0.1, 0.9))]
    alone = [
        training.train(copy.deepcopy(model), mask, splits, RECIPE).attrs["training_flops"]
        for model, mask in zip(found, pruned)
    ]
    logs = stacked.train(copy.deepcopy(found), pruned, splits, [RECIPE, RECIPE])
    logs += training.train_together(copy.deepcopy(found), pruned, splits, RECIPE)
    assert [log.attrs["training_flops"] for log in logs] == alone * 2
    assert logs[0].attrs["reason"] == "2 networks side by side are one dense network"
