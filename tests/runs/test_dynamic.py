"""Masks that change while the network trains: by hand, by a slow version, and in a training."""

import math

import pytest
import torch
from torch import nn

from panning_core import data, masks, models, pruning, training
from panning_core.errors import UserError
from panning_core.methods import dynamic, registry
from panning_core.methods.dynamic import WAYS, Plan, Update
from panning_core.runs import base, prune
from panning_core.runs.dynamic import DENSE, FOUND, RANDOM, Dynamic, first_mask
from panning_core.training.moving import Moving

SHORT = {"images": 200, "epochs": 4, "updates": 4}


def tiny(seed=0):
    """8-6-3 with weights and gradients from a seed, and a mask of about half of them."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    mask = {}
    for name, weight in models.prunable(model).items():
        mask[name] = torch.rand(weight.shape, generator=generator) < 0.5
        weight.data = torch.randn(weight.shape, generator=generator) * mask[name]
        weight.grad = torch.randn(weight.shape, generator=generator)
    return model, mask


def run(**fields):
    return Dynamic(**{**SHORT, **fields}).execute(base.Context())


def trained(method, sparsity=0.9, death=0.5, **fields):
    """The model and mask after a training, and its table."""
    made = Dynamic(**{**SHORT, "method": method, "sparsity": sparsity, "death": death, **fields})
    splits = data.load("digits")
    model = models.build("lenet300", splits.input_shape, splits.classes, made.seed)
    update = made.update(len(splits.train))
    mask = first_mask(made, model, splits, update)
    log = training.train(model, mask, splits, made.recipe(), update=update)
    return model, log.attrs["mask"], log


def test_the_cubic_schedule():
    literal = [1, 0.74255, 0.5364, 0.37585, 0.2552, 0.16875, 0.1108, 0.07565, 0.0576, 0.05095, 0.05]
    found = [dynamic.cubic(1, 0.05, k / 10) for k in range(11)]
    assert found == pytest.approx(literal, abs=1e-12)
    # What the authors' bound, one pruning short, makes of four.
    assert dynamic.cubic(1, 0.02, 3 / 4) == pytest.approx(0.0353125)
    plan = Plan(steps=200, updates=20, until=0.5)
    assert [plan.density(10 * k, 1, 0.05) for k in range(11)] == pytest.approx(literal, abs=1e-12)
    assert plan.density(190, 1, 0.05) == 0.05


def test_the_death_rate():
    found = [Plan(1000).rate(t) for t in (0, 250, 500, 1000)]
    assert found == pytest.approx([0.5, 0.427509, 0.2525, 0.005], abs=1e-6)
    assert Plan(1000, death=0).rate(700) == 0


@pytest.mark.parametrize(
    "model, shape, density, literal",
    [
        ("lenet300", (1, 28, 28), 0.05, [0.038484, 0.111334, 0.918507]),
        ("lenet300", (1, 28, 28), 0.5, [0.434099, 1, 1]),
        ("lenet5", (1, 28, 28), 0.05, [0.726116, 0.037477, 0.038063, 1]),
    ],
)
def test_erk_gives_each_layer_its_share(model, shape, density, literal):
    network = models.build(model, shape, 10, seed=0)
    images = data.Split(torch.rand(100, *shape), torch.arange(100) % 10, 10)
    splits = data.Splits("", "", images, images, images, 10, "")
    made = Dynamic(model=model, method=RANDOM, sparsity=1 - density)
    mask = first_mask(made, network, splits, None)
    assert masks.count(mask) == round(density * masks.size(mask))
    found = [masks.density({name: m}) for name, m in mask.items()]
    sizes = [m.numel() for m in mask.values()]
    assert found == [pytest.approx(d, abs=max(1 / n, 1e-6)) for d, n in zip(literal, sizes)]


def test_an_exchange_by_hand():
    """Of five weights the three smallest die; 4, 1 and 3 grow, and 1 had just died."""
    model = nn.Sequential(nn.Linear(8, 1))
    weight = model[0].weight
    weight.data = torch.tensor([[0.9, -0.1, 0.4, 0, 0, -0.05, 0.3, 0]])
    weight.grad = torch.tensor([[0, 0.8, 0.1, 0.5, -0.9, 0.2, 0.3, 0.1]])
    before = weight.detach().clone()
    mask = {"0.weight": weight.detach() != 0}
    stay = dynamic.survivors(weight, mask["0.weight"], 0.5)
    assert stay.nonzero()[:, 1].tolist() == [0, 2]
    order = [dynamic.grown(stay, weight.grad.abs(), k) & ~stay for k in (1, 2, 3)]
    assert [o.nonzero()[:, 1].tolist() for o in order] == [[4], [1, 4], [1, 3, 4]]
    after = dynamic.exchange(model, mask, 0.5)
    assert after["0.weight"].nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    # Weight 1 comes back as it was: nothing is set to 0 in between.
    assert torch.equal(weight, before)


def slowly(weight, mask, gradient, rate):
    """An exchange of one layer, weight by weight."""
    size, slope = weight.detach().abs().flatten().tolist(), gradient.abs().flatten().tolist()
    kept = [i for i, m in enumerate(mask.flatten().tolist()) if m]
    dying = sorted(kept, key=lambda i: size[i])[: math.ceil(rate * len(kept))]
    stay = set(kept) - set(dying)
    free = sorted(set(range(mask.numel())) - stay, key=lambda i: -slope[i])
    found = torch.zeros(mask.numel(), dtype=torch.bool)
    found[sorted(stay | set(free[: len(dying)]))] = True
    return found.view(mask.shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0, 0.005, 0.3, 0.9])
def test_an_exchange_is_what_going_through_the_weights_gives(seed, rate):
    model, mask = tiny(seed)
    found = dynamic.exchange(model, mask, rate)
    for name, weight in models.prunable(model).items():
        assert torch.equal(found[name], slowly(weight, mask[name], weight.grad, rate))


def test_random_growth_keeps_the_count_and_the_survivors():
    model, mask = tiny()
    found = dynamic.exchange(model, mask, 0.5, torch.Generator().manual_seed(3))
    for name, weight in models.prunable(model).items():
        assert masks.count({"": found[name]}) == masks.count({"": mask[name]})
        assert (found[name] >= dynamic.survivors(weight, mask[name], 0.5)).all()
    again = dynamic.exchange(model, mask, 0.5, torch.Generator().manual_seed(4))
    assert any(not torch.equal(found[name], again[name]) for name in mask)


def test_gradual_pruning_keeps_the_largest_of_all_layers_and_brings_none_back():
    model, mask = tiny()
    weights = models.prunable(model)
    found = dynamic.shrink(model, mask, 0.25)
    every = torch.cat([weights[name][m].abs() for name, m in mask.items()]).sort().values
    least = every[-round(0.25 * masks.size(mask))]
    for name, m in found.items():
        assert torch.equal(m, mask[name] & (weights[name].abs() >= least))
    assert dynamic.shrink(model, found, 0.5) is found


@pytest.mark.parametrize("step, density, rate", [(25, 0.3, 0.427509), (75, 0.2, 0.077491)])
def test_an_update_prunes_and_then_exchanges_at_the_rate_of_its_step(step, density, rate):
    """GraNet from dense to 0.2 in half of 100 steps; half of that way is seven eighths done."""
    model, _ = tiny()
    weights = models.prunable(model)
    for weight in weights.values():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    _, pruned, found = Update("granet", Plan(100, 20), 0.2)(step, model, masks.ones(model))
    every = torch.cat([weight.abs().flatten() for weight in weights.values()]).sort().values
    least = every[-round(density * len(every))]
    for name, weight in weights.items():
        assert torch.equal(pruned[name], weight.abs() >= least)
        assert torch.equal(found[name], slowly(weight, pruned[name], weight.grad, rate))


@pytest.mark.parametrize(
    "largest, weights, momentum", [(3, [1, 0, 0, 0], 0), (1, [1, 0.8, 0, 0], 1.9)]
)
def test_a_weight_that_was_pruned_grows_from_zero_and_one_that_died_goes_on(
    largest, weights, momentum
):
    """GraNet by hand: of 1, 0.8, 0.3 and 0.2 pruning leaves the first two, of which 0.8 dies; what
    grows is 0.2, which was pruned, or 0.8 again."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    weight = model[0].weight
    weight.data = torch.tensor([[1, 0.8, 0.3, 0.2]])
    update, x = Update("granet", Plan(steps=4, updates=4), 0.5), torch.zeros(1, 4)
    trainer = Moving(
        model, masks.ones(model), training.Recipe(weight_decay=0), update, loss=lambda z, y: z.sum()
    )
    trainer.steps, x[0, largest] = 1, 1.0
    trainer.optimiser.state[weight]["momentum_buffer"] = torch.ones(1, 4)
    trainer.step(x, torch.zeros(1, dtype=torch.int64), lr=0.0)
    assert trainer.mask["0.weight"][0].nonzero().flatten().tolist() == [0, largest]
    assert weight[0].tolist() == pytest.approx(weights)
    found = trainer.optimiser.state[weight]["momentum_buffer"][0, largest]
    assert float(found) == pytest.approx(momentum)


def test_without_deaths_granet_is_gmp_bit_for_bit():
    gmp, gmp_mask, _ = trained("gmp")
    granet, granet_mask, _ = trained("granet", death=0)
    assert all(torch.equal(gmp_mask[name], m) for name, m in granet_mask.items())
    for a, b in zip(gmp.parameters(), granet.parameters()):
        assert torch.equal(a, b)
    other, _, _ = trained("granet")
    assert any(not torch.equal(a, b) for a, b in zip(gmp.parameters(), other.parameters()))


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_without_deaths_sparse_training_is_static(method):
    model, mask, log = trained(method, death=0)
    splits = data.load("digits")
    static = models.build("lenet300", splits.input_shape, splits.classes, 0)
    made = Dynamic(**{**SHORT, "method": RANDOM, "sparsity": 0.9} | {"updates": 40})
    first = first_mask(made, static, splits, None)
    assert all(torch.equal(first[name], m) for name, m in mask.items())
    table = training.train(static, first, splits, made.recipe(), update=lambda t, net, m: m)
    for a, b in zip(model.parameters(), static.parameters()):
        assert torch.equal(a, b)
    assert table.loss.tolist() == log.loss.tolist()


@pytest.mark.parametrize("method", WAYS)
def test_every_method_ends_with_the_weights_asked_for(method):
    model, mask, log = trained(method)
    assert masks.count(mask) == round(0.1 * masks.size(mask))
    for name, weight in models.prunable(model).items():
        assert not weight[~mask[name]].any()
    again, _, _ = trained(method)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    if WAYS[method].start is None:
        assert log.density.nunique() == 1


def test_each_has_a_record_and_pruning_runs_say_where_it_belongs():
    assert {*registry.moving()} == {*WAYS}
    assert not {*registry.moving()} & {*registry.pruners(), *registry.learners()}
    with pytest.raises(UserError, match="rigl changes its mask .* a run of the kind dynamic"):
        prune.Run("digits", "lenet300", "rigl", 0.9)


def test_the_first_mask_is_that_of_the_pruner_random(lenet300, digits_batch):
    found = dynamic.begin(lenet300, 0.07, seed=5)
    same, _ = pruning.prune(lenet300, "random", 0.07, digits_batch, seed=5, scope="erk")
    assert all(torch.equal(found[name], m) for name, m in same.items())
    assert masks.density(dynamic.begin(lenet300, 1.0, seed=5)) == 1


def test_updates_come_evenly_and_none_after_the_last_step():
    plan = Plan(steps=100, updates=10)
    assert [t for t in range(1, 101) if plan.due(t)] == list(range(10, 100, 10))
    assert (plan.every, plan.prunings) == (10, 5)


def test_flops_are_those_of_every_step():
    """On 200 images, two steps of 100 an epoch, an update after every other step."""
    weights, dense = 50_200, 3 * 2 * 50_200
    static, moved = run(method=RANDOM, updates=40), run(method="set")
    assert static["training_flops"] == moved["training_flops"] == 800 * 6 * 2510
    assert static["inference_flops"] == 2 * 2510
    assert static["dense_flops"] == 800 * dense
    # Three updates read the gradients of all weights.
    rigl = run(method="rigl")["training_flops"]
    assert rigl == static["training_flops"] + 3 * 100 * 2 * (weights - 2510)
    densities = [1, 1, *[dynamic.cubic(1, 0.05, 0.5)] * 2, *[0.05] * 4]
    counts = [round(d * weights) for d in densities]
    assert run(method="gmp")["training_flops"] == 100 * 6 * sum(counts)


def test_what_finding_a_mask_costs():
    dense = 3 * 2 * 50_200
    found = {m: run(method=m, updates=40, epochs=1)["pruning_flops"] / dense for m in FOUND}
    rounds = {"snip": 100, "iterative-snip": 10_000, "grasp": 300}
    assert found == {**rounds, "synflow": 100, "panning": 100 * 301}
    assert run(method=RANDOM, updates=40, epochs=1)["pruning_flops"] == 0


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"method": "rgl"}, "did you mean 'rigl'"),
        ({"method": DENSE}, "a dense network has sparsity 0"),
        ({"method": RANDOM, "death": 0.3}, "stays as it is; leave out death"),
        ({"sparsity": 1}, "must be a fraction in"),
        ({"death": 1}, "death of a plan is 1"),
        ({"death": -0.1}, "death of a plan is -0.1"),
        ({"until": 0}, "until of a plan is 0"),
        ({"until": 0.01}, "pruning would end before it begins"),
        ({"updates": 1}, "updates is 1"),
        ({"method": "granet-st", "sparsity": 0.3}, "begins at density 0.5 and can not end at 0.7"),
        ({"epochs": 0}, "epochs of a dynamic run is 0"),
        ({"images": 0}, "images of a dynamic run is 0"),
        ({"lr": -0.1}, "lr is -0.1; it must be a number of at least 0"),
        ({"model": "lenet"}, "unknown model 'lenet'"),
    ],
)
def test_bad_input_is_told_in_one_sentence(fields, said):
    with pytest.raises(UserError, match=said):
        Dynamic(**fields)


def test_a_training_too_short_for_its_updates_is_refused():
    with pytest.raises(UserError, match="updates of a plan are 40 in 2 steps"):
        run(epochs=1, updates=40)
    with pytest.raises(UserError, match="unknown method that changes its mask 'snip'"):
        Update("snip", Plan(100), 0.1)


def test_the_accuracy_is_that_of_the_last_epoch_on_the_first_images_of_a_set():
    found = run(method="rigl", sparsity=0.9)
    splits = data.load("digits").first(train=200, test=50)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (200, 143, 50)
    model = models.build("lenet300", splits.input_shape, splits.classes, 0)
    made = Dynamic(**{**SHORT, "method": "rigl", "sparsity": 0.9})
    mask = dynamic.begin(model, 0.1, 0)
    whole = data.load("digits").first(train=200)
    log = training.train(model, mask, whole, made.recipe(), update=made.update(200))
    for part in ("test", "validation"):
        assert found[f"{part}_accuracy"] == pytest.approx(log[f"{part}_accuracy"].iloc[-1])
