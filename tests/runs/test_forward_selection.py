"""Greedy forward selection: against a slow version, by hand, and along a pre-training."""

import itertools
import json

import pytest
import torch

from panning_core import data
from panning_core.errors import UserError
from panning_core.methods.greedy_forward_selection import select, shares
from panning_core.runs import base
from panning_core.runs import forward_selection as forward
from panning_core.runs.forward_selection import ForwardSelection, Network

SMALL = {"samples": 40, "width": 12, "chosen": 5, "steps": 20, "batch": 8}


def functions(hidden, outputs):
    """[N, n, C]: each neuron's function on the images."""
    return len(outputs) * torch.einsum("ni,ic->inc", hidden, outputs)


def loss(mean, target):
    return float((mean - target).square().sum() / (2 * len(target)))


def slowly(hidden, outputs, target, count):
    """Every candidate is tried in full."""
    parts, chosen = functions(hidden, outputs), []
    for _ in range(count):
        tried = [loss(parts[[*chosen, i]].mean(0), target) for i in range(len(parts))]
        chosen.append(min(range(len(parts)), key=tried.__getitem__))
    return chosen


def seeded(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("seed", range(5))
def test_it_chooses_what_trying_all_of_them_chooses(seed):
    hidden, outputs, target = seeded(seed, (9, 7), (7, 3), (9, 3))
    hidden, outputs = hidden.relu(), outputs / 7
    assert select(hidden, outputs, target, 12).tolist() == slowly(hidden, outputs, target, 12)


def test_by_hand():
    """A = (1, 0), B = (0, 1), C = (2, 2) on two images, target (1, 1): a tie goes to the first, a
    neuron may come again, and the loss rises when the best network must be left."""
    hidden = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    outputs, target = torch.full((3, 1), 1 / 3), torch.ones((2, 1))
    chosen = select(hidden, outputs, target, 4)
    assert chosen.tolist() == [0, 2, 1, 0]
    parts = functions(hidden, outputs)
    losses = [loss(parts[chosen[: k + 1]].mean(0), target) for k in range(4)]
    assert losses == pytest.approx([0.25, 0.0625, 0, 0.015625], abs=1e-6)
    assert shares(chosen, 3).tolist() == [0.5, 0.25, 0.25]


def test_one_neuron_is_the_best_single_one_and_of_one_neuron_there_is_no_choice():
    hidden, outputs, target = seeded(7, (9, 7), (7, 3), (9, 3))
    alone = [loss(part, target) for part in functions(hidden, outputs)]
    assert int(select(hidden, outputs, target, 1)) == min(range(7), key=alone.__getitem__)
    assert select(hidden[:, :1], outputs[:1], target, 3).tolist() == [0, 0, 0]


def test_the_subnetwork_is_the_mean_of_what_was_added():
    network = Network(*(each.float() for each in seeded(1, (6, 4), (6, 3))))
    x, chosen = seeded(2, (5, 4))[0].float(), torch.tensor([4, 1, 4, 4, 0])
    part = network.part(shares(chosen, 6))
    assert len(part.inner) == 3
    mean = functions(network.hidden(x), network.outer)[chosen].mean(0)
    assert torch.allclose(part(x), mean, atol=1e-6)
    weighed = network.weighed(shares(chosen, 6))
    assert torch.allclose(network.hidden(x) @ weighed, mean, atol=1e-6)


def test_a_step_is_that_of_autograd():
    inner, outer, x, target = seeded(3, (6, 4), (6, 3), (5, 4), (5, 3))
    network = Network(inner.clone(), outer.clone())
    network.step(x, target, 0.3, 3.0)
    inner.requires_grad_(), outer.requires_grad_()
    output = (x @ inner.T).relu() @ outer
    ((output - target).square().sum() / (2 * len(x))).backward()
    assert torch.allclose(network.inner, inner - 0.3 * 6 * inner.grad)
    assert torch.allclose(network.outer, outer - 3.0 / 6 * outer.grad)


def test_images_have_norm_one_and_a_smaller_set_is_part_of_a_larger_one():
    few, many = (
        forward.images(ForwardSelection(samples=n), torch.Generator().manual_seed(0))[0]
        for n in (50, 90)
    )
    assert few.x.shape == (50, 64) and torch.allclose(many.x.norm(dim=1), torch.ones(90))
    assert torch.equal(few.x, many.x[:50]) and torch.equal(few.y, many.y[:50])
    assert (few.x >= -1e-6).all()


def test_batches_use_every_image_once_before_any_twice():
    supply = forward.batches(10, 4, torch.Generator().manual_seed(0))
    first, second, third = itertools.islice(supply, 3)
    assert len({*first.tolist(), *second.tolist()}) == 8 and len(third) == 4
    whole = next(forward.batches(10, 0, torch.Generator().manual_seed(0)))
    assert sorted(whole.tolist()) == list(range(10))


def test_checkpoints():
    found = forward.checkpoints(640)
    assert (
        found[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
        and found[-1] == 640
        and found == sorted(set(found))
    )
    assert all(b <= max(a + 1, 1.2 * a + 0.5) for a, b in itertools.pairwise(found))


def test_a_run_says_the_same_twice_and_its_lists_belong_together():
    run, state = ForwardSelection(**SMALL), torch.get_rng_state()
    found = run.execute(base.Context())
    assert torch.equal(torch.get_rng_state(), state)
    assert found == ForwardSelection(**SMALL).execute(base.Context())
    assert found != ForwardSelection(**SMALL, seed=1).execute(base.Context())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {len(v) for k, v in found.items() if k != "later"} == {len(found["step"])}
    assert [row["step"] for row in found["later"]] == [0, 1, 2, 5, 10, 20]
    # what is selected at the very end is not trained any more
    assert found["later"][-1]["greedy_trained_loss"] == pytest.approx(found["greedy_loss"][-1])
    assert found["dense_loss"][-1] < found["dense_loss"][0]


def test_what_is_trained_for_the_rest_leaves_the_whole_network_alone():
    run = ForwardSelection(**SMALL)
    train, test = forward.images(run, torch.Generator().manual_seed(0))
    network = Network.drawn(12, 64, 10, torch.Generator().manual_seed(0))
    inner, outer = network.inner.clone(), network.outer.clone()
    found = forward.chosen(run, network, network.hidden(train.x), train)
    assert {arm: int((w > 0).sum()) for arm, w in found.items() if arm != "greedy"} == {
        "random": 5,
        "norm": 5,
    }
    ended, longer = (forward.trained(run, network, found, train, test, n) for n in (0, 20))
    assert longer["greedy_trained_loss"] < ended["greedy_trained_loss"]
    assert torch.equal(network.inner, inner) and torch.equal(network.outer, outer)


def test_all_neurons_with_equal_shares_are_the_dense_network():
    run = ForwardSelection(**{**SMALL, "chosen": 12})
    found = run.execute(base.Context())
    assert (
        found["random_loss"] == found["norm_loss"] == pytest.approx(found["dense_loss"], rel=1e-5)
    )
    assert all(row["random_accuracy"] == row["dense_accuracy"] for row in found["later"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples of a forward selection is 0"),
        ({"chosen": 1.5}, "chosen of a forward selection is 1.5"),
        ({"seed": -1}, "seed of a forward selection is -1"),
        ({"batch": 400}, "a batch of 400 images needs more than 320 images"),
        ({"dataset": "digit"}, "unknown data set of a forward selection 'digit'; did you mean"),
        ({"lr_in": 0}, "lr_in is 0; it must be a number above 0"),
        ({"lr_out": float("nan")}, "lr_out is nan; it must be a number above 0"),
    ],
)
def test_bad_fields(wrong, message):
    with pytest.raises(UserError, match=message):
        ForwardSelection(**wrong)


def test_too_many_images_and_shapes_that_do_not_fit():
    most = len(data.load("digits").train)
    with pytest.raises(UserError, match=f"digits has {most} training images, not 5000"):
        ForwardSelection(samples=5000).execute(base.Context())
    with pytest.raises(UserError, match="do not fit together"):
        select(torch.ones(4, 3), torch.ones(2, 2), torch.ones(4, 2), 1)
    with pytest.raises(UserError, match="number of neurons to select is 0"):
        select(torch.ones(4, 3), torch.ones(3, 2), torch.ones(4, 2), 0)
