"""What a sparse network shows of itself, against every path one by one."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from panning_core import data, masks, models
from panning_core.analysis import pathways
from panning_core.errors import UserError
from tests.conftest import make_residual

WIDTHS = st.lists(st.integers(1, 4), min_size=2, max_size=5)
MLPS = given(
    WIDTHS,
    st.sampled_from([nn.ReLU, nn.SiLU, nn.Identity]),
    st.floats(0.2, 1),
    st.integers(0, 10_000),
)


def mlp(widths, activation=nn.ReLU, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            layer
            for a, b in itertools.pairwise(widths)
            for layer in (nn.Linear(a, b), activation())
        ]
        return nn.Sequential(*layers[:-1]).double()


def random_mask(model, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < density
        for name, w in models.prunable(model).items()
    }


def paths_of(model, mask):
    """Every path through kept weights: its units from input to output, and the product of its
    weights.
    """
    weights = [(w.detach() * mask[name]).tolist() for name, w in models.prunable(model).items()]
    kept = [m.tolist() for m in mask.values()]
    for units in itertools.product(range(len(weights[0][0])), *(range(len(w)) for w in weights)):
        steps = list(enumerate(itertools.pairwise(units)))
        if all(kept[layer][o][i] for layer, (i, o) in steps):
            yield units, math.prod(weights[layer][o][i] for layer, (i, o) in steps)


def on_paths_to(outputs, model, mask):
    """The weights on a path to one of these outputs."""
    found = {name: torch.zeros_like(m) for name, m in mask.items()}
    for units, _ in paths_of(model, mask):
        if units[-1] in outputs:
            for name, (i, o) in zip(mask, itertools.pairwise(units)):
                found[name][o, i] = True
    return found


def equal(one, two):
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@MLPS
@settings(deadline=None, max_examples=60)
def test_contributions_and_importance_against_every_path(widths, activation, density, seed):
    """Biases have no part in it."""
    model = mlp(widths, nn.ReLU if activation is nn.SiLU else activation, seed)
    mask = random_mask(model, density, seed)
    signed, absolute = (
        torch.zeros(widths[-1], widths[0], dtype=torch.double),
        torch.zeros(widths[0], dtype=torch.double),
    )
    for units, product in paths_of(model, mask):
        signed[units[-1], units[0]] += product
        absolute[units[0]] += abs(product)
    found, important = pathways.contributions(model, mask), pathways.importance(model, mask)
    assert (
        found.dtype == important.dtype == torch.double
        and not found.requires_grad
        and not important.requires_grad
    )
    assert torch.allclose(
        found, signed, rtol=1e-10, atol=1e-14 * float(absolute.max())
    ) and torch.allclose(important, absolute, rtol=1e-10, atol=0)
    assert ((important > 0) == masks.effective(model, mask)["0.weight"].any(0)).all()


@MLPS
@settings(deadline=None, max_examples=60)
def test_a_pathway_is_all_paths_to_an_output(widths, activation, density, seed):
    model = mlp(widths, activation, seed)
    mask = random_mask(model, density, seed)
    union = {name: torch.zeros_like(m) for name, m in mask.items()}
    for output in range(widths[-1]):
        found = pathways.pathway(model, mask, output)
        assert equal(found, on_paths_to({output}, model, mask)) and all(
            m.dtype == torch.bool for m in found.values()
        )
        union = {name: m | found[name] for name, m in union.items()}
    assert equal(union, masks.effective(model, mask))


@MLPS
@settings(deadline=None, max_examples=60)
def test_without_a_pathway_the_other_outputs_keep_theirs_unless_it_is_shared(
    widths, activation, density, seed
):
    model = mlp(widths, activation, seed)
    mask = random_mask(model, density, seed)
    for output in range(widths[-1]):
        mine, others = (
            on_paths_to({output}, model, mask),
            on_paths_to(set(range(widths[-1])) - {output}, model, mask),
        )
        own, all_of_it = (
            pathways.without(model, mask, output),
            pathways.without(model, mask, output, shared=True),
        )
        assert equal(own, {name: m & ~(mine[name] & ~others[name]) for name, m in mask.items()})
        assert equal(all_of_it, {name: m & ~mine[name] for name, m in mask.items()})
        assert not masks.count(pathways.pathway(model, own, output)) and not masks.count(
            pathways.pathway(model, all_of_it, output)
        )
        assert equal(on_paths_to(set(range(widths[-1])) - {output}, model, own), others)


def test_two_pathways_that_share_a_weight():
    """x0 -> h0 -> both outputs, x1 -> h1 -> the second."""
    model, mask = (
        mlp([2, 2, 2]),
        {
            "0.weight": torch.tensor([[1, 0], [0, 1]]).bool(),
            "2.weight": torch.tensor([[1, 0], [1, 1]]).bool(),
        },
    )
    with torch.no_grad():
        (
            model[0].weight.copy_(torch.tensor([[2.0, 9.0], [9.0, -3.0]])),
            model[2].weight.copy_(torch.tensor([[-5.0, 9.0], [7.0, 11.0]])),
        )
    assert pathways.contributions(model, mask).tolist() == [
        [-10, 0],
        [14, -33],
    ] and pathways.importance(model, mask).tolist() == [24, 33]

    def bits(found):
        return [m.int().tolist() for m in found.values()]

    assert bits(pathways.pathway(model, mask, 0)) == [[[1, 0], [0, 0]], [[1, 0], [0, 0]]] and bits(
        pathways.pathway(model, mask, 1)
    ) == [[[1, 0], [0, 1]], [[0, 0], [1, 1]]]
    assert bits(pathways.without(model, mask, 0)) == [
        [[1, 0], [0, 1]],
        [[0, 0], [1, 1]],
    ]  # h0's weight is the other's too
    assert bits(pathways.without(model, mask, 0, shared=True)) == [
        [[0, 0], [0, 1]],
        [[0, 0], [1, 1]],
    ]
    assert bits(pathways.without(model, mask, 1)) == [[[1, 0], [0, 0]], [[1, 0], [0, 0]]]


# --- convolutions ---


def conv():
    """Pooling that leaves out the last column, and BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).double()
    model.input_shape = (2, 5, 6)
    return model


CONVS = pytest.mark.parametrize(
    "build",
    [conv, make_residual, lambda: models.build("lenet5", (1, 16, 18), 4, seed=0)],
    ids=["conv", "residual", "lenet5"],
)


def outputs_by_pixel(model, mask):
    """[classes, *input shape]: whether a path leads from the pixel to the output, found by lighting
    one pixel after another in a network of ones and zeros.
    """
    shape, forwards = models.input_shape(model), {}
    pixels = torch.eye(math.prod(shape), dtype=torch.double).view(-1, *shape)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            forwards[module] = lambda x, m=module, w=mask[f"{name}.weight"].double(): (
                nn.functional.conv2d(x, w, None, m.stride, m.padding)
            )
        elif isinstance(module, nn.Linear):
            forwards[module] = lambda x, w=mask[f"{name}.weight"].double(): x @ w.T
        elif isinstance(module, nn.BatchNorm2d):
            forwards[module] = lambda x: x
    for module, forward in forwards.items():
        module.forward = forward
    try:
        return (model(pixels) > 0).T.view(
            -1, *shape
        )  # where a single pixel is lit, max-pooling loses nothing
    finally:
        for module in forwards:
            del module.forward


@CONVS
def test_a_pixel_matters_if_and_only_if_a_path_leads_from_it(build):
    model = build()
    some = 0
    for density, seed in itertools.product((0.05, 0.2, 1.0), range(3)):
        mask = random_mask(model, density, seed)
        seen, important = outputs_by_pixel(model, mask), pathways.importance(model, mask)
        assert important.shape == models.input_shape(model) and torch.equal(
            important > 0, seen.any(0)
        )
        found = pathways.contributions(model, mask)
        assert (
            found.shape == seen.shape
            and ((found != 0) <= seen).all()
            and torch.equal(found.abs() > 1e-12 * found.abs().max(), seen)
        )
        some += seen.any() and not seen.all()
    assert some >= 3


@CONVS
def test_pathways_of_convolutions_are_the_effective_part_of_a_network_with_one_output(build):
    model = build()
    outputs, last = (
        next(reversed(models.prunable(model).values())).shape[0],
        list(models.prunable(model))[-1],
    )
    mask = random_mask(model, 0.3, 1)
    for output in range(outputs):
        only = {**mask, last: mask[last] & (torch.arange(outputs) == output)[:, None]}
        assert equal(
            pathways.pathway(model, mask, output), masks.effective(model, only)
        ) and masks.count(masks.effective(model, only))


def test_contributions_of_a_convolution_with_average_pooling_by_hand():
    """3x3 pixels under a 2x2 kernel and a 2x2 average: the middle pixel is in all four windows."""
    model = nn.Sequential(nn.Conv2d(1, 1, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1, 1))
    model.input_shape = (1, 3, 3)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 5.0]])), model[3].weight.fill_(4)
    found = pathways.contributions(model, masks.ones(model))
    expected = torch.tensor([[1.0, -1.0, -2.0], [4.0, 7.0, 3.0], [3.0, 8.0, 5.0]])
    assert torch.equal(found[0, 0], expected.double())
    assert torch.equal(
        pathways.importance(model, masks.ones(model))[0],
        torch.tensor([[1.0, 3.0, 2.0], [4.0, 11.0, 7.0], [3.0, 8.0, 5.0]]).double(),
    )


# --- recalls ---


def test_recalls_of_a_network_worked_out_by_hand():
    """Two pixels, three classes: the logits are x0, x1 and, if it is kept, 10 (x0 + x1)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        (
            model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])),
            model[1].bias.zero_(),
        )
    x = torch.tensor(
        [[3.0, 1.0], [2.0, 1.0], [1.0, 5.0], [1.0, 4.0], [2.0, 1.0], [4.0, 0.0], [1.0, 2.0]]
    ).view(7, 1, 1, 2)
    split = data.Split(x, torch.tensor([0, 0, 1, 1, 1, 2, 2]), 3)
    mask = masks.ones(model)
    assert pathways.recalls(model, mask, split).tolist() == [0, 0, 1]
    mask["1.weight"][2] = False
    assert pathways.recalls(model, mask, split).tolist() == [1, pytest.approx(2 / 3), 0]
    mask["1.weight"][1] = False
    assert pathways.recalls(model, mask, split).tolist() == [1, 0, 0]


def test_recalls_are_of_the_network_in_eval_mode_under_its_mask(digits):
    model = models.build("resnet20", digits.input_shape, 10, seed=0)
    model(digits.train.x[:200])  # running statistics
    mask = random_mask(model, 0.6, 0)
    many = data.Split(digits.train.x, digits.train.y, 10)  # more than a thousand
    found = pathways.recalls(model, mask, many)
    weights = {name: w.detach() * mask[name] for name, w in models.prunable(model).items()}
    with torch.no_grad():
        guesses = torch.func.functional_call(model.eval(), weights, (many.x,)).argmax(1)
    assert (
        found.tolist()
        == pytest.approx([float((guesses[many.y == c] == c).double().mean()) for c in range(10)])
        and found.sum() > 0
    )


# --- nothing changes ---


SIX = data.Split(
    torch.randn((6, 2, 6, 6), dtype=torch.double, generator=torch.Generator().manual_seed(0)),
    torch.arange(6) % 3,
    3,
)
LOOKS = {
    "contributions": pathways.contributions,
    "importance": pathways.importance,
    "pathway": lambda model, mask: masks.flatten(pathways.pathway(model, mask, 1)),
    "without": lambda model, mask: masks.flatten(pathways.without(model, mask, 0)),
    "recalls": lambda model, mask: pathways.recalls(model, mask, SIX),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looking_changes_nothing(name, residual, unchanged):
    mask = random_mask(residual, 0.4, 0)
    kept = {layer: m.clone() for layer, m in mask.items()}
    with unchanged(residual):
        first = LOOKS[name](residual, mask)
    with torch.no_grad():
        assert torch.equal(LOOKS[name](residual, mask), first) and first.any()
    assert equal(kept, mask)


def test_looking_leaves_no_trace_where_it_fails():
    model = nn.Sequential(nn.Linear(2, 2), nn.Unflatten(1, (1, 2)), nn.RNN(2, 2), nn.Linear(2, 1))
    before = [set(vars(module)) for module in model.modules()]
    for look in (
        pathways.contributions,
        pathways.importance,
        lambda *both: pathways.pathway(*both, 0),
    ):
        with pytest.raises(UserError, match="through 2, a RNN, which calls rnn_tanh"):
            look(model, masks.ones(model))
    assert [set(vars(module)) for module in model.modules()] == before


def test_a_network_that_reads_nothing_has_no_important_input():
    splits, model = data.load("digits"), models.build("lenet300", (1, 8, 8), 10, seed=0)
    nothing = {name: torch.zeros_like(m) for name, m in masks.ones(model).items()}
    assert not pathways.permutation_importance(model, nothing, splits.validation, 1, 0).any()
