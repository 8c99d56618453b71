"""Every setting of the code of Kang et al. 2022 beside ours, read from our code, so that the table
can not go stale.

The authors' side is what their public code does, in our words. ``same`` and ``option`` are checked
by a test: there both sides read alike.
"""

from __future__ import annotations

from dataclasses import fields

import pandas as pd

from .. import data, metrics, training
from ..agent import environment, learning, observations
from ..experiments import studies
from ..methods import panning, registry

SAME, OPTION, DIFFERS = "same", "option", "differs"


def _recipe(name: str) -> str:
    r = training.RECIPES[name]
    return (
        f"SGD {r.lr}, momentum {r.momentum}, {r.decay} to 0, {r.epochs} epochs, batch"
        f" {r.batch_size}, weight decay {r.weight_decay:g}"
    )


def _scale(dataset: str) -> str:
    white, mean, deviation = data.AUTHORS[dataset]
    return (
        f"mean {', '.join(map(str, mean))}, deviation {', '.join(map(str, deviation))} of pixels"
        " in [0, 1]"
    )


def _stages(table: tuple) -> str:
    return "; ".join(f"to {limit:g}: {', '.join(f'{v:g}' for v in mix)}" for limit, mix in table)


# One piece: a table of data, one row a setting.
def table() -> pd.DataFrame:
    """Columns: part, setting, authors, here, how (same, option or differs), and why it differs or
    what the option is called.
    """
    agent = {field.name: field.default for field in fields(learning.Training)}
    run = {field.name: field.default for field in fields(studies.Run)}
    td3 = (
        "lr {lr:g}, gamma {gamma:g}, tau {tau:g}, batch {batch_size}, two layers of {width},"
        " noise {noise:g}, target noise {target_noise:g} clipped at {noise_clip:g}, delay"
        " {delay}, {random_steps:,} random steps"
    )
    rows = [
        (
            "network",
            "initialisation",
            "convolutions Kaiming-normal (fan-out), linear N(0, 0.01), biases 0",
            "convolutions Kaiming-normal (fan-out), linear N(0, 0.01), biases 0",
            OPTION,
            "init: panning; the default is PyTorch's",
        ),
        (
            "network",
            "LeNet-5",
            "no ReLU between convolution and pool",
            "a ReLU after each convolution",
            DIFFERS,
            "without it SGD at 0.1 diverges within an epoch from either initialisation",
        ),
        (
            "network",
            "CIFAR ResNets",
            "32, 64, 128 channels",
            "ResNet-20 16, 32, 64; ResNet-32 32, 64, 128",
            DIFFERS,
            "ResNet-20 is that of He et al. 2016, with which the other papers compare",
        ),
        (
            "data",
            "MNIST input",
            "mean 0.5, deviation 0.5 of pixels in [0, 1]",
            _scale("mnist"),
            OPTION,
            "normalisation: authors; the default is standardised",
        ),
        (
            "data",
            "Fashion-MNIST input",
            "mean 0.1307, deviation 0.3081 of pixels in [0, 1]",
            _scale("fashion-mnist"),
            OPTION,
            "normalisation: authors",
        ),
        (
            "data",
            "CIFAR-10 input",
            "mean 0.4914, 0.4822, 0.4465, deviation 0.2023, 0.1994, 0.201 of pixels in [0, 1]",
            _scale("cifar10"),
            OPTION,
            "normalisation: authors",
        ),
        (
            "data",
            "number that is reported",
            "best test epoch",
            "last epoch",
            DIFFERS,
            "the best epoch is chosen on test images; it is recorded beside the last one",
        ),
        (
            "data",
            "held out for choices",
            "nothing",
            f"{data.VALIDATION_FRACTION:.0%} of the training images",
            DIFFERS,
            "every choice here is made on validation images",
        ),
        ("scores", "logits are divided by", "200", f"{metrics.TEMPERATURE:g}", SAME, ""),
        ("scores", "images of each class in a batch", "10", str(run["per_class"]), SAME, ""),
        (
            "scores",
            "batches",
            "a fresh one in each round",
            "a fresh one in each round" if not run["fixed_batch"] else "one",
            SAME,
            (
                "so one-shot methods see 100 images and methods of 100 rounds 10,000;"
                " fixed_batch: true gives all the same 100"
            ),
        ),
        ("scores", "rounds", "100", str(registry.method("panning").rounds), SAME, ""),
        (
            "scores",
            "density after round t of K",
            "density^(t/K)",
            {"exponential": "density^(t/K)"}.get(run["schedule"], run["schedule"]),
            SAME,
            "",
        ),
        (
            "scores",
            "stage table, sum",
            (
                "to 0.8: 0.2, 0.5, 0.3; to 0.9: 0.2, 0.4, 0.4; to 0.98: 0.2, 0.3, 0.5; to 0.99:"
                " 0.4, 0.2, 0.4; to 1: 0.5, 0, 0.5"
            ),
            _stages(panning.SUM_STAGES),
            SAME,
            "",
        ),
        (
            "scores",
            "stage table, product",
            (
                "to 0.8: 0.3, 1, 0.2; to 0.9: 0.3, 1, 0.4; to 0.98: 0.5, 0.5, 0.6; to 0.99: 0.8,"
                " 0, 1; to 1: 1, 0, 1"
            ),
            _stages(panning.PRODUCT_STAGES),
            SAME,
            "",
        ),
        (
            "scores",
            "a metric without spread",
            "0/0: an empty mask",
            "contributes nothing, and the trace says so",
            DIFFERS,
            "an empty mask is no answer",
        ),
        (
            "scores",
            "SynFlow's biases",
            "their absolute values",
            "0",
            DIFFERS,
            "a bias is no path; equal where biases are 0, as under the authors' initialisation",
        ),
        ("agent", "steps", "50,000", f"{agent['steps']:,}", SAME, ""),
        (
            "agent",
            "TD3",
            (
                "lr 0.0002, gamma 0.99, tau 0.01, batch 256, two layers of 256, noise 0.1, target"
                " noise 0.2 clipped at 0.5, delay 2, 2,000 random steps"
            ),
            td3.format(**agent),
            SAME,
            "",
        ),
        (
            "agent",
            "targets",
            "first 10,000 steps U(0.8, 1), later half U(0.9, 1) and half U(0.98, 1)",
            (
                f"first {environment.EXPLORING:,} steps U(0.8, 1), later half U(0.9, 1) and half"
                " U(0.98, 1)"
            ),
            SAME,
            "",
        ),
        (
            "agent",
            "extremes of loss and gTg",
            "of every dense and sub-network look, never reset",
            _departs("extremes", "of every dense and sub-network look, never reset"),
            SAME,
            "departures: [extremes] keeps them fixed",
        ),
        (
            "agent",
            "gTg of a sub-network",
            "over all prunable weights",
            _departs("kept", "over all prunable weights"),
            SAME,
            "departures: [kept] sums over kept weights",
        ),
        (
            "agent",
            "loss",
            "float32",
            "float64",
            DIFFERS,
            "batches differ by 1e-5, fifty steps of a float32; departures: [] gives theirs",
        ),
        (
            "agent",
            "last round",
            "terminates",
            "truncates",
            DIFFERS,
            (
                "the learner makes the same of both, unless bootstrap is set; departures: []"
                " gives theirs"
            ),
        ),
        (
            "agent",
            "three coefficients of 0",
            "the first weights in order stay, and the network dies",
            "equal shares",
            DIFFERS,
            "departures: [] gives theirs",
        ),
        (
            "agent",
            "batches of the environment",
            "a fresh one in each step",
            f"a pool of {agent['pool']}",
            DIFFERS,
            "what depends on a batch alone is computed once; pool: 0 gives theirs",
        ),
        (
            "agent",
            "applied to",
            "its own network",
            "its own network",
            OPTION,
            "an agent named after a network, with the seed of the runs",
        ),
        (
            "agent",
            "guard against dead networks",
            "none",
            "none",
            OPTION,
            "options: {guard: false}; the default has one",
        ),
        (
            "training",
            "MNIST, Fashion-MNIST",
            "SGD 0.1, momentum 0.9, cosine to 0, 80 epochs, batch 256, weight decay 0.0001",
            _recipe("mnist"),
            SAME,
            "",
        ),
        (
            "training",
            "CIFAR",
            "SGD 0.1, momentum 0.9, cosine to 0, 180 epochs, batch 128, weight decay 0.0005",
            _recipe("cifar"),
            OPTION,
            "recipe: cifar",
        ),
        ("training", "mask that is trained", "effective", "effective", SAME, ""),
    ]
    return pd.DataFrame(
        rows, columns=["part", "setting", "authors", "here", "how", "why, or by what option"]
    )


def _departs(name: str, authors: str) -> str:
    """The authors' way, unless it is a departure that environments make by default."""
    return f"not: {observations.DEPARTURES[name]}" if name in observations.DEFAULT else authors
