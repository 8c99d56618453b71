"""The table of settings says of our code what is true of it."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from panning_core import data, masks, metrics, models, training
from panning_core.agent import environment, observations
from panning_core.experiments import studies
from panning_core.methods import panning, registry
from panning_core.reporting import fidelity

PANNING = registry.METHODS["panning"]


def test_every_setting_has_a_word_and_what_is_the_same_reads_the_same():
    table = fidelity.table()
    assert (
        set(table.how) == {fidelity.SAME, fidelity.OPTION, fidelity.DIFFERS}
        and table.setting.is_unique
    )
    for row in table.to_dict("records"):
        assert (row["authors"] == row["here"]) == (row["how"] != fidelity.DIFFERS), row
        assert row["why, or by what option"] or row["how"] == fidelity.SAME


@pytest.mark.parametrize("module, name, value, setting", [
    (metrics, "TEMPERATURE", 100.0, "logits are divided by"),
    (environment, "EXPLORING", 20_000, "targets"),
    (observations, "DEFAULT", ("kept", "loss"), "gTg of a sub-network"),
    (observations, "DEFAULT", ("extremes",), "extremes of loss and gTg"),
    (panning, "SUM_STAGES", panning.PRODUCT_STAGES, "stage table, sum"),
    (registry, "METHODS", {"panning": dataclasses.replace(PANNING, rounds=99)}, "rounds"),
    (training, "RECIPES", {**training.RECIPES, "mnist": training.Recipe(lr=0.2)},
     "MNIST, Fashion-MNIST"),
    (data, "AUTHORS", {**data.AUTHORS, "mnist": (255, (0.1307,), (0.3081,))}, "MNIST input"),
])  # fmt: skip
def test_a_change_of_the_code_shows_in_the_table(monkeypatch, module, name, value, setting):
    monkeypatch.setattr(module, name, value)
    (row,) = fidelity.table().query("setting == @setting").to_dict("records")
    assert row["authors"] != row["here"]


def test_the_authors_input_is_pixels_from_minus_one_to_one():
    standard, authors = (
        data.load("digits", normalisation) for normalisation in data.NORMALISATIONS
    )
    assert float(authors.train.x.min()) == -1 and float(authors.train.x.max()) == 1
    assert (
        torch.equal(standard.train.y, authors.train.y)
        and standard.fingerprint == authors.fingerprint
    )
    slope = standard.train.x.std() / authors.train.x.std()
    assert torch.allclose(
        standard.train.x,
        slope * (authors.train.x - authors.train.x.mean()) + standard.train.x.mean(),
        atol=1e-5,
    )
    run = studies.Run("digits", "lenet300", "snip", 0.9, epochs=1, normalisation="authors")
    assert run.splits() is authors and "normalisation" in run.canonical()


@pytest.mark.parametrize(
    "name, normalisation, says",
    [
        ("digits", "theirs", "unknown normalisation 'theirs'"),
        (
            "cifar100",
            "authors",
            (
                "the authors' normalisation is known for digits, mnist, .*, not for cifar100; use"
                " standardised"
            ),
        ),
    ],
)
def test_a_normalisation_that_is_none_is_a_sentence(name, normalisation, says):
    with pytest.raises(data.UserError, match=says):
        studies.Run(name, "lenet300", normalisation=normalisation)


def test_synflow_with_absolute_biases_is_the_same_where_biases_are_0():
    """The public codes take |b|; a bias of the first layers adds paths that begin nowhere."""

    def with_biases(model):
        weights = {
            name: p.detach().double().abs().requires_grad_() for name, p in model.named_parameters()
        }
        x = torch.ones(1, 64, dtype=torch.double)
        for layer in ("fc1", "fc2", "fc3"):
            x = F.linear(torch.relu(x), weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        names = list(models.prunable(model))
        gradients = torch.autograd.grad(x.sum(), [weights[name] for name in names])
        return {name: weights[name].detach() * g for name, g in zip(names, gradients)}

    batch = data.balanced_batch(data.load("digits").train, 1, torch.Generator().manual_seed(0))
    for init, same in (("panning", True), ("pytorch", False)):
        model = models.build("lenet300", (1, 8, 8), 10, 0, init)
        ours, theirs = (
            masks.flatten(metrics.synflow(model, masks.ones(model), batch)),
            masks.flatten(with_biases(model)),
        )
        assert torch.allclose(ours, theirs, rtol=1e-9) == same
