"""Locality of masks on images: Gaussian inputs have the moments they should, masks the sizes."""

import json

import pytest
import torch

from panning_core import data, masks, models, training
from panning_core.errors import UserError
from panning_core.runs import base, mask_locality
from panning_core.runs.mask_locality import MaskLocality


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def execute(**fields):
    return MaskLocality(dataset="digits", **fields).execute(base.Context())


# --- inputs ---


def test_gaussian_inputs_have_each_class_its_moments(digits):
    many = data.Split(torch.zeros(60_000, 1, 8, 8), torch.arange(60_000) % 10, 10)
    drawn = mask_locality._drawn(many, *mask_locality.moments("digits"), seeded(0)).flatten(1)
    for label in (0, 7):
        x = digits.train.x[digits.train.y == label].flatten(1)
        found = drawn[many.y == label]
        assert (found.mean(0) - x.mean(0)).abs().max() < 0.15
        difference = torch.cov(found.T) - torch.cov(x.T)
        assert difference.square().sum() < 0.02 * torch.cov(x.T).square().sum()


def test_gaussian_inputs_keep_labels_and_leave_the_images_alone(digits):
    before = digits.train.x.clone()
    drawn = mask_locality.gaussian(digits, seeded(0))
    assert torch.equal(digits.train.x, before)
    for name in ("train", "validation", "test"):
        old, new = getattr(digits, name), getattr(drawn, name)
        assert torch.equal(old.y, new.y) and old.x.shape == new.x.shape
        assert not torch.equal(old.x, new.x)
    again = mask_locality.gaussian(digits, seeded(0))
    assert torch.equal(again.test.x, drawn.test.x)
    # A pixel that is the same in all images of a class is so here too.
    constant = digits.train.x[digits.train.y == 3].std(0) == 0
    assert constant.any() and drawn.test.x[drawn.test.y == 3].std(0)[constant].max() < 1e-4


# --- masks ---


def test_masks_of_all_methods_have_the_same_number_in_each_layer(digits):
    counts = set()
    for method in ("random", "snip", "trained-magnitude"):
        run = MaskLocality(dataset="digits", method=method, epochs=1)
        mask = run.find(models.build("lenet300", (1, 8, 8), 10, 0), digits)
        counts.add(tuple(int(m.sum()) for m in mask.values()))
    assert len(counts) == 1 and sum(counts.pop()) == round(0.02 * (64 * 300 + 31_000))


def test_rounds_remove_the_same_fraction_and_begin_anew(digits, monkeypatch):
    """Two rounds, written out; the second training turns the order of the weights round, even of
    those that were removed."""
    starts = []

    def train(model, mask, splits, recipe):
        starts.append({name: p.clone() for name, p in model.named_parameters()})
        for weight in mask_locality.prunable(model).values():
            weight.data.pow_((1, -1)[len(starts) - 1])

    monkeypatch.setattr(training, "train", train)
    model = models.build("lenet300", (1, 8, 8), 10, 0)
    first = {name: p.clone() for name, p in model.named_parameters()}
    recipe = MaskLocality().recipe()
    found = mask_locality.after_training(model, digits, 0.04, 2, recipe)
    for start in starts:
        assert all(torch.equal(start[name], first[name]) for name in first)
    weights = {name: first[name] for name in found}
    one = masks.keep_top({n: w.abs() for n, w in weights.items()}, 0.2, "erk")
    scores = {n: (1 / w).abs().masked_fill(~one[n], -1) for n, w in weights.items()}
    two = masks.keep_top(scores, 0.04, "erk")
    assert len(starts) == 2 and all(torch.equal(found[name], two[name]) for name in two)


def test_measures_of_a_mask_made_by_hand():
    """Blocks of 3 x 3 at random places are local, and random pixels are not."""
    corner = torch.randint(6, (2, 100), generator=seeded(0))
    blocks = torch.zeros((100, 8, 8), dtype=torch.bool)
    for unit, (i, j) in enumerate(corner.T.tolist()):
        blocks[unit, i : i + 3, j : j + 3] = True
    found = mask_locality.measures(blocks.flatten(1), 8, 8)
    assert found["kept"] == 900 and found["radius"] == pytest.approx((4 / 3) ** 0.5, rel=1e-5)
    assert found["shuffled"] == pytest.approx(8 / 63, rel=1e-5)
    # Of 3 x 3 pixels in the middle of an image 24 of 36 neighbours are kept, at its edges more.
    assert 24 / 36 < found["neighbours"] < 24 / 30
    assert found["neighbours"] > found["rewired_neighbours"] + 0.4
    assert found["radius"] < found["rewired_radius"] - 1
    scattered = torch.rand((100, 64), generator=seeded(1)) < 0.15
    found = mask_locality.measures(scattered, 8, 8)
    assert abs(found["neighbours"] - found["rewired_neighbours"]) < 0.03
    assert abs(found["radius"] - found["rewired_radius"]) < 0.1


# --- runs ---


def test_a_run_repeats_itself_and_holds_plain_numbers():
    state = torch.get_rng_state()
    found = execute(density=0.1, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == execute(density=0.1, epochs=1) != execute(density=0.1, epochs=1, seed=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert execute(density=0.1, inputs="gaussian", epochs=1) != found
    after = execute(density=0.2, method="trained-magnitude", epochs=3)
    assert after["accuracy"] > 0.2 and after["kept"] > 0


def test_the_kind_and_its_key():
    assert base.kind("mask-locality") is MaskLocality
    assert MaskLocality().canonical() == {}
    assert MaskLocality(inputs="gaussian").canonical() == {"inputs": "gaussian"}


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("seed", -1, "seed of a mask's locality is -1"),
        ("epochs", 0, "epochs of a mask's locality is 0; it must be a whole number from 1"),
        ("dataset", "mnits", "did you mean 'mnist'"),
        ("inputs", "gauss", "unknown inputs of a mask's locality 'gauss'"),
        ("method", "snap", "did you mean 'snip'"),
        ("density", 0, "density of a mask's locality is 0; it must keep weights"),
        ("density", 2, "density is 2"),
    ],
)
def test_bad_fields_are_named(field, value, says):
    with pytest.raises(UserError, match=says):
        MaskLocality(**{field: value})
