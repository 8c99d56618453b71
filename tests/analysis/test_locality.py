"""Measures of locality: closed forms, plain counts, and controls that keep what they promise."""

import math

import pytest
import torch

from panning_core.analysis import locality


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_participation_of_known_shapes():
    at = torch.arange(100)
    shapes = {
        "delta": ((at == 3).float(), 1),
        "flat": (torch.full((100,), -0.2), 100),
        "sinusoid": (torch.sin(2 * math.pi * at / 100), 200 / 3),
        "faster": (torch.cos(2 * math.pi * 7 * at / 100), 200 / 3),
        "bump": (torch.exp(-((at - 50) ** 2) / 18), 3 * math.sqrt(2 * math.pi)),
    }
    for weights, wanted in shapes.values():
        assert float(locality.participation(weights)) == pytest.approx(wanted, rel=1e-4)
    noise = locality.participation(torch.randn((2000, 100), generator=seeded(0)))
    assert noise.shape == (2000,) and float(noise.mean()) == pytest.approx(34.8, abs=0.5)


def test_likeness_is_the_best_correlation_over_shifts_and_signs():
    fields = torch.randn((3, 12), generator=seeded(8))
    filters = torch.randn((2, 12), generator=seeded(9))
    wanted = [
        max(
            abs(float(torch.stack([field, each.roll(shift)]).corrcoef()[0, 1]))
            for each in filters
            for shift in range(12)
        )
        for field in fields
    ]
    assert locality.likeness(fields, filters).tolist() == pytest.approx(wanted, abs=1e-5)
    same = locality.likeness(fields, -2 * fields[:1].roll(5) + 3)
    assert float(same[0]) == pytest.approx(1) and (same[1:] < 0.99).all()


def test_neighbours_of_rings_and_grids():
    assert sorted(map(tuple, locality.ring(4).T.tolist())) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    pairs = {tuple(pair) for pair in locality.grid(2, 3).T.tolist()}
    assert pairs == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}


@pytest.mark.parametrize(
    "kept, share",
    [([0, 1, 2], 4 / 6), ([0, 2, 4], 0.0), ([0, 5], 1 / 2), ([0, 1, 2, 3, 4, 5], 1.0), ([], 0.0)],
)
def test_kept_neighbours_on_a_ring_of_six(kept, share):
    mask = torch.zeros((1, 6), dtype=torch.bool)
    mask[0, kept] = True
    assert locality.kept_neighbours(mask, locality.ring(6)) == pytest.approx(share)


def test_kept_neighbours_on_a_grid_counted_one_by_one():
    mask = torch.rand((3, 20), generator=seeded(1)) < 0.4
    kept = neighbours = 0
    for unit in mask.view(3, 4, 5).tolist():
        for i in range(4):
            for j in range(5):
                for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if unit[i][j] and 0 <= a < 4 and 0 <= b < 5:
                        neighbours, kept = neighbours + 1, kept + unit[a][b]
    assert locality.kept_neighbours(mask, locality.grid(4, 5)) == pytest.approx(kept / neighbours)


def test_the_radius_is_the_distance_from_the_middle():
    mask = torch.zeros((3, 4, 5), dtype=torch.bool)
    # A pair two pixels apart, a 2 x 2 square, and one pixel.
    mask[0, 1, 1] = mask[0, 1, 3] = mask[2, 0, 0] = True
    mask[1, :2, :2] = True
    wanted = ((2 * 1 + 4 * 0.5 + 0) / 7) ** 0.5
    assert locality.radius(mask.flatten(1), 4, 5) == pytest.approx(wanted)
    assert locality.radius(torch.zeros((2, 20), dtype=torch.bool), 4, 5) == 0


def test_shuffled_is_the_mean_over_shuffles():
    mask = torch.rand((3, 12), generator=seeded(2)) < torch.tensor([[0.2], [0.5], [0.8]])
    generator, shares = seeded(3), []
    for _ in range(4000):
        order = torch.rand((3, 12), generator=generator).argsort(1)
        shares.append(locality.kept_neighbours(mask.gather(1, order), locality.ring(12)))
    assert locality.shuffled(mask) == pytest.approx(sum(shares) / len(shares), abs=0.01)
    assert locality.shuffled(torch.zeros((2, 5), dtype=torch.bool)) == 0


def test_rewired_keeps_the_numbers_of_units_and_sites():
    mask = torch.rand((30, 64), generator=seeded(4)) < torch.rand(64, generator=seeded(5))
    found = locality.rewired(mask, 0)
    assert torch.equal(found.sum(0), mask.sum(0)) and torch.equal(found.sum(1), mask.sum(1))
    assert torch.equal(found, locality.rewired(mask, 0))
    assert not torch.equal(found, locality.rewired(mask, 1))
    assert torch.equal(locality.rewired(mask[:1], 0), mask[:1])


def test_rewired_reaches_all_masks_of_these_numbers_alike():
    """Permutation matrices of three: each of the six in a sixth of the cases."""
    counts = {}
    for seed in range(1200):
        found = locality.rewired(torch.eye(3, dtype=torch.bool), seed)
        place = tuple(found.int().argmax(1).tolist())
        counts[place] = counts.get(place, 0) + 1
    assert len(counts) == 6 and all(abs(n - 200) < 5 * 200**0.5 for n in counts.values())


def test_only_locality_beyond_these_numbers_is_an_excess():
    """Units that all read the middle of an image are local by chance; bumps at own places not."""
    at = torch.arange(144)
    y, x = at // 12, at % 12
    pairs = locality.grid(12, 12)
    middle = torch.exp(-((y - 5.5) ** 2 + (x - 5.5) ** 2) / 12)
    shared = torch.rand((200, 144), generator=seeded(6)) < middle
    excess = locality.kept_neighbours(shared, pairs) - locality.kept_neighbours(
        locality.rewired(shared, 0), pairs
    )
    assert abs(excess) < 0.03 < locality.kept_neighbours(shared, pairs) - locality.shuffled(shared)
    centre = torch.randint(12, (2, 200, 1), generator=seeded(7))
    bumps = (y - centre[0]).abs() + (x - centre[1]).abs() < 3
    excess = locality.kept_neighbours(bumps, pairs) - locality.kept_neighbours(
        locality.rewired(bumps, 0), pairs
    )
    assert excess > 0.4
