"""A diffusion model of checkpoints: networks in a batch against torch's own, the published schedule
and measure by their numbers, and what must hold of any model."""

import json

import pytest
import torch
from torch import nn

from panning_core import masks, metrics
from panning_core.errors import UserError
from panning_core.methods import checkpoint_diffusion as diffusion
from panning_core.methods.checkpoint_diffusion import Denoiser, Shape, Task
from panning_core.runs import base, checkpoint_diffusion
from panning_core.runs.checkpoint_diffusion import CheckpointDiffusion, Collection

SHAPE = Shape(4, 3, 5)
TINY = {"networks": 6, "checkpoints": 4, "iterations": 3, "width": 8, "depth": 1}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def task(n=40, seed=9):
    generator = seeded(seed)
    x = torch.randn((n, SHAPE.inputs), generator=generator)
    return Task(x, torch.randint(SHAPE.classes, (n,), generator=generator))


def module(theta):
    """The same network as torch makes it."""
    units, biases = SHAPE.split(theta)
    model = nn.Sequential(
        nn.Linear(SHAPE.inputs, SHAPE.hidden), nn.ReLU(), nn.Linear(SHAPE.hidden, SHAPE.classes)
    )
    with torch.no_grad():
        model[0].weight.copy_(units[:, : SHAPE.inputs])
        model[0].bias.copy_(units[:, SHAPE.inputs])
        model[2].weight.copy_(units[:, SHAPE.inputs + 1 :].T)
        model[2].bias.copy_(biases)
    model.input_shape = (SHAPE.inputs,)
    return model


def vector(model):
    units = [model[0].weight, model[0].bias[:, None], model[2].weight.T]
    return diffusion.join(torch.cat(units, 1), model[2].bias).detach()


def exchanged(theta, order):
    units, biases = SHAPE.split(theta)
    return diffusion.join(units[..., order, :], biases)


# --- tiny networks ---


def test_a_batch_of_networks_is_those_of_torch():
    theta, data = diffusion.initial(SHAPE, 7, seeded(0)), task()
    found = diffusion.logits(SHAPE, theta, data.x)
    for row, out, loss in zip(theta, found, diffusion.losses(SHAPE, theta, *data)):
        wanted = module(row)(data.x).detach()
        assert torch.allclose(out, wanted, atol=1e-6)
        assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(wanted, data.y)))
        assert torch.equal(vector(module(row)), row)
    assert SHAPE.size == 4 * 3 + 3 + 3 * 5 + 5 and int(SHAPE.weights().sum()) == 27


def test_initial_weights_are_uniform_within_the_root_of_the_fan_in():
    shape = Shape(16, 4, 9)
    units, biases = shape.split(diffusion.initial(shape, 500, seeded(0)))
    for part, bound in ((units[..., :17], 0.25), (units[..., 17:], 0.5), (biases, 0.5)):
        assert part.abs().max() < bound and part.abs().max() > 0.99 * bound
        assert float(part.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_trainings_are_nesterov_sgd_of_torch(monkeypatch):
    """All networks at once, against one by one with torch.optim.SGD on the same batches."""
    theta, data = diffusion.initial(SHAPE, 3, seeded(0)), task()
    kept = diffusion.snip_masks(SHAPE, theta, *data, 0.5)
    found = diffusion.train(SHAPE, theta, kept, data, 5, [0, 2, 5], seeded(1), 0.1, batch=8)
    generator = seeded(1)
    batches = [torch.randint(40, (3, 8), generator=generator) for _ in range(5)]
    for network in range(3):
        model = module(theta[network] * kept[network])
        mask = module(kept[network].float())
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
        seen = [vector(model)]
        for chosen in batches:
            rows = chosen[network]
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            for p, m in zip(model.parameters(), mask.parameters()):
                p.grad *= m.detach()
            optimiser.step()
            seen.append(vector(model))
        assert torch.allclose(found[network], torch.stack(seen)[[0, 2, 5]], atol=1e-5)
    assert not found[~kept[:, None].expand_as(found)].any()


def test_masks_are_snip_of_every_network():
    theta, data = diffusion.initial(SHAPE, 4, seeded(0)), task()
    kept = diffusion.snip_masks(SHAPE, theta, *data, 0.4)
    for row, found in zip(theta, kept):
        model = module(row)
        scores = metrics.snip(model, masks.ones(model), data)
        # In the order of the vector, which decides between equal scores.
        unit = torch.cat([scores["0.weight"], torch.ones(3, 1), scores["2.weight"].T], 1)
        flat = diffusion.join(unit, torch.ones(5))[SHAPE.weights()]
        wanted = masks.keep_top({"weights": flat}, 0.4)["weights"]
        assert torch.equal(found[SHAPE.weights()], wanted)
        assert found[~SHAPE.weights()].all() and int(wanted.sum()) == round(0.4 * 27)


# --- diffusion ---


def test_the_schedule_is_the_published_one():
    published = {1: 0.9999, 250: 0.524085, 500: 0.078587, 750: 0.003351, 1000: 4.0358e-5}
    for step, left in published.items():
        assert float(diffusion.LEFT[step - 1]) == pytest.approx(left, rel=2e-4)
    theta, noise = torch.ones(1, 4), torch.full((1, 4), 2.0)
    wanted = 0.524085**0.5 + 2 * (1 - 0.524085) ** 0.5
    assert float(diffusion.noised(theta, torch.tensor([249]), noise)[0, 0]) == pytest.approx(wanted)


def made(width=8, trained=True):
    torch.manual_seed(0)
    model = Denoiser(SHAPE, width, 1)
    if trained:
        for decoder in (model.unit_out, model.bias_out):
            nn.init.normal_(decoder.weight)
    return model.eval()


def some(n=4):
    theta = diffusion.initial(SHAPE, n, seeded(1))
    return theta, torch.rand(n, generator=seeded(2)), torch.rand(n, generator=seeded(3))


def test_an_untrained_model_returns_the_start():
    theta, loss, wanted = some()
    found = diffusion.sample(made(trained=False), theta, loss, wanted, seeded(0))
    assert torch.equal(found, theta)


def test_exchanging_hidden_units_commutes_with_everything():
    theta, loss, wanted = some()
    order, data, model = [2, 0, 1], task(), made()
    swapped = exchanged(theta, order)
    assert not torch.allclose(swapped, theta)
    outputs = diffusion.logits(SHAPE, theta, data.x)
    assert torch.allclose(diffusion.logits(SHAPE, swapped, data.x), outputs, atol=1e-6)
    noisy, step = torch.randn(theta.shape, generator=seeded(4)), torch.full((4,), 300)
    found = model(noisy, theta, step, loss, wanted)
    other = model(exchanged(noisy, order), swapped, step, loss, wanted)
    assert torch.allclose(exchanged(found, order), other, atol=1e-5)
    assert not torch.allclose(found, model(noisy, theta, step, loss, wanted + 1), atol=1e-3)


def test_a_perfect_model_is_sampled_exactly():
    """DDIM ends at what the model says at the last step, whatever the noise."""
    theta, loss, wanted = some()
    steps, noises = [], []

    def perfect(x, start, step, loss, wanted):
        steps.append(int(step[0]))
        left = float(diffusion.LEFT[steps[-1]])
        noises.append((x - left**0.5 * 3 * start) / (1 - left) ** 0.5)
        return 3 * start

    found = diffusion.sample(perfect, theta, loss, wanted, seeded(0), steps=20)
    assert torch.equal(found, 3 * theta) and len(steps) == 20
    assert steps[0] == 999 and steps[-1] == 0 and steps == sorted(steps, reverse=True)
    # Without noise of its own, every step keeps the first one's.
    assert all(torch.allclose(noise, noises[0], atol=1e-2) for noise in noises)


def test_a_model_learns_what_follows_from_its_conditions():
    """theta* = theta + loss*: the error falls far below that of returning theta."""
    n, times = 50, 4
    theta = diffusion.initial(SHAPE, n, seeded(0))
    loss = torch.rand((n, times), generator=seeded(1))
    checkpoints = theta[:, None] + loss[..., None]
    model = made(width=16, trained=False)
    average, errors = diffusion.fit(model, checkpoints, loss, 150, seeded(2), lr=1e-2, batch=64)
    assert len(errors) == 10 and errors[-1] < errors[0] / 5
    wanted = torch.linspace(0.1, 0.9, n)
    found = diffusion.sample(average, checkpoints[:, 0], loss[:, 0], wanted, seeded(3), steps=10)
    moved = (found - theta).mean(1)
    assert torch.corrcoef(torch.stack([moved, wanted]))[0, 1] > 0.95


def test_pairs_go_forward_and_their_distance_is_uniform():
    run, start, end = diffusion.pairs(7, 5, 20_000, seeded(0))
    assert run.min() == 0 and run.max() == 6 and start.min() == 0 and end.max() == 4
    apart = torch.bincount(end - start)
    assert apart[0] == 0 and (apart[1:] / 20_000 - 0.25).abs().max() < 0.02
    for distance in range(1, 5):
        assert set(start[end - start == distance].tolist()) == set(range(5 - distance))


def test_alignment_is_r_squared():
    desired = torch.tensor([[0.0, 0.5, 1.0]])
    assert float(diffusion.alignment(desired, torch.tensor([[0.1, 0.5, 1.1]]))) == pytest.approx(
        0.96
    )
    assert float(diffusion.alignment(desired, torch.full((1, 3), 0.5))) == pytest.approx(0)
    assert float(diffusion.alignment(desired, desired)) == 1


# --- the run ---


def test_prompts_go_from_what_was_reached_to_below_the_start():
    found = checkpoint_diffusion.prompts(torch.tensor([2.0, 3.0]), 0.5)
    assert found.shape == (2, 12) and found[:, 0].tolist() == [0.5, 0.5]
    assert found[:, -1].tolist() == pytest.approx([1.8, 2.7])
    gaps = found.diff()
    assert torch.allclose(gaps, gaps[:, :1].expand_as(gaps), atol=1e-6)


def test_the_control_without_a_model_copies_the_nearest_training():
    theta = torch.tensor([[[0.0], [1.0], [2.0]], [[10.0], [12.0], [15.0]]])
    collection = Collection(theta, torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.5, 0.1]]), 1.0)
    desired = torch.tensor([[0.4, 1.1], [0.2, 1.9]])
    found = checkpoint_diffusion.nearest(collection, torch.tensor([[0.5], [9.0]]), desired)
    assert found[..., 0].tolist() == [[2.5, 1.5], [14.0, 9.0]]


def test_inputs_are_principal_components_of_the_training_images():
    parts = checkpoint_diffusion.tasks()
    x = parts.train.x
    assert x.shape[1] == 10 and x.mean(0).abs().max() < 1e-4
    assert torch.allclose(x.T.cov(), torch.eye(10), atol=1e-3)
    assert len(parts.validation.y) and len(parts.test.y) == 360


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(checkpoint_diffusion, "STEPS", 30)
    monkeypatch.setattr(checkpoint_diffusion, "STARTS", 3)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_run_says_what_it_found(density, short):
    settings, before = CheckpointDiffusion(**TINY, density=density), torch.get_rng_state()
    found = settings.execute(base.Context())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert settings.execute(base.Context()) == found
    assert torch.equal(torch.get_rng_state(), before)
    for prefix in ("dense_", "pruned_"):
        assert len(found[prefix + "desired"]) == len(found[prefix + "observed"]) == 12
        assert found[prefix + "desired"][0] == pytest.approx(found["last_loss"], rel=1e-4)
        assert 0 <= found[prefix + "sgd_steps"] <= 30 and 0 <= found[prefix + "zeros"] <= 1
    assert found["dense_observed"] == found["dense_observed_masked"]
    assert found["pruned_observed"] != found["pruned_observed_masked"]


def test_a_collection_of_pruned_networks_has_their_zeros(short):
    settings = CheckpointDiffusion(**TINY, density=0.5)
    shape = Shape(10, 6, 10)
    found = checkpoint_diffusion.collect(shape, settings, checkpoint_diffusion.tasks(), seeded(0))
    assert found.theta.shape == (6, 4, 136) and found.loss.shape == (6, 4)
    assert (found.theta == 0).all(1).sum(1).tolist() == [60] * 6
    assert float((found.theta * found.scale).std()) == pytest.approx(0.538, rel=1e-4)
    assert (found.loss[:, -1] < found.loss[:, 0]).all()


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"seed": -1}, "seed of a checkpoint-diffusion is -1"),
        ({"networks": 1}, "networks of a checkpoint-diffusion is 1; .* from 2"),
        ({"checkpoints": 1}, "checkpoints of a checkpoint-diffusion is 1"),
        ({"checkpoints": 302}, "checkpoints of a checkpoint-diffusion is 302; a training has 300"),
        ({"iterations": 0}, "iterations of a checkpoint-diffusion is 0"),
        ({"width": 6}, "width of a checkpoint-diffusion is 6; it must be a multiple of 4"),
        ({"depth": 0}, "depth of a checkpoint-diffusion is 0"),
        ({"density": 0}, "density of a checkpoint-diffusion is 0"),
        ({"density": 1.5}, "density of a checkpoint-diffusion is 1.5"),
        ({"density": None}, "density of a checkpoint-diffusion is None"),
    ],
)
def test_bad_fields_are_named(fields, says):
    with pytest.raises(UserError, match=says):
        CheckpointDiffusion(**fields)
