"""Everything that can be said to bad input, in one place: what is done, and a part of the sentence
that it gives.

In Python it is a ``UserError``; a command prints it as its last line on stderr and ends with exit
code 2. Never a traceback, and never silence. Each module's own tests say more about its own
sentences.
"""

import json
import math
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import panning_core
from panning_core import ROOT, compaction, data, masks, metrics, models, pruning, training
from panning_core.__main__ import command_line as obey
from panning_core.__main__ import main
from panning_core.agent import learning, policies
from panning_core.analysis import networks
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies
from panning_core.experiments.ledger import Ledger
from panning_core.methods import gumbel_softmax, iterative_magnitude
from panning_core.reporting import notebooks
from panning_core.runs import toy
from panning_core.training import stacked
from tests.checkout import PARAMETERS, Checkout

NAN, INF = math.nan, math.inf
RUN = {"dataset": "digits", "model": "lenet300"}
PRUNED = {**RUN, "method": "snip", "sparsity": 0.5, "epochs": 0}
LINE = {
    "key": studies.Run(**PRUNED).key(),
    "run": studies.Run(**PRUNED).canonical(),
    "metrics": {"density": 0.5},
}


class Desk:
    """What the rows of the tables work with, in a folder of its own: a network, a batch, a checkout
    with a study.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        self.checkout = Checkout(folder / "checkout")
        self.checkout.notebook("01_tiny", PARAMETERS)
        self.checkout.profile({"01_tiny": {"grid": [PRUNED]}})
        for module in (panning_core, profiles, notebooks):
            monkeypatch.setattr(module, "ROOT", self.checkout.root)
        monkeypatch.delenv("PANNING_RESULTS", raising=False)

    digits = cached_property(lambda self: data.load("digits"))
    model = cached_property(lambda self: models.build("lenet300", (1, 8, 8), 10, seed=0))
    other = cached_property(lambda self: models.build("lenet300", (1, 6, 6), 10, seed=0))
    mask = cached_property(lambda self: masks.ones(self.model))
    batch = cached_property(
        lambda self: data.balanced_batch(self.digits.train, 2, torch.Generator().manual_seed(0))
    )
    scores = cached_property(lambda self: metrics.magnitude(self.model, self.mask, self.batch))

    def file(self, name, content=None):
        """A file with this content; a folder without."""
        path = self.folder / name
        (
            path.mkdir()
            if content is None
            else path.write_bytes(content if isinstance(content, bytes) else content.encode())
        )
        return path

    def environment(self, name, value):
        self.patch.setenv(name, str(value))

    def prune(self, **change):
        return pruning.prune(
            **{
                "model": self.model,
                "method": "snip",
                "density": 0.1,
                "batches": self.batch,
                **change,
            }
        )

    def train(self, **change):
        return training.train(
            **{
                "model": self.model,
                "mask": self.mask,
                "splits": self.digits,
                "recipe": training.Recipe(epochs=1),
                **change,
            }
        )

    def runs(self, text):
        """The runs of a profile with this text."""
        self.checkout.profile(text)
        return studies.runs("01_tiny", "tiny")

    def grid(self, **fields):
        return studies.expand([{**RUN, **fields}])

    def arrays(self, **change):
        """A data set of 20 images of 4 classes, its training part changed."""
        x, y = np.zeros((20, 1, 4, 4)), np.arange(20) % 4
        given = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "name": "mine", **change}
        return data.from_arrays(**given)

    def parquet(self, **columns):
        """A data set of parquet files with these columns."""
        self.environment("PANNING_DATA", self.folder)
        self.file("mine")
        for part in ("train", "test"):
            pd.DataFrame(columns).to_parquet(self.folder / "mine" / f"{part}.parquet")
        return data.load("mine")

    def notebook(self, content, **parameters):
        path = self.checkout.root / "notebooks" / "02_mine.ipynb"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return notebooks.check_notebook(path, parameters)

    def ledger(self, *lines):
        """A ledger of these lines, each as it is or a row."""
        content = b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
        return Ledger(self.file("runs.jsonl", content))

    def swept(self, line):
        """The study's rows when its ledger has this line."""
        path = self.checkout.ledger("01_tiny")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(line) + "\n")
        return studies.sweep("01_tiny", "tiny", jobs=1)

    def archive(self, **arrays):
        np.savez(self.folder / "given.npz", **arrays)
        return self.folder / "given.npz"

    def saved(self, change):
        """The bytes of the policy that comes with the package, changed."""
        return self.file(
            "given.npz", change((policies.FOLDER / f"{policies.SHIPPED}.npz").read_bytes())
        )

    def card(self, **change):
        """The network that study 06 found, changed."""
        return networks.rebuild(
            {
                **json.loads((ROOT / "results/paper/06_gumbel_softmax/network.json").read_text()),
                **change,
            }
        )


def notebook(*tags, source="epochs = 3", kernel=True):
    metadata = (
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        if kernel
        else {}
    )
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    return {"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


class Silent(nn.Module):
    """A network with nothing to prune."""

    def forward(self, x):
        return x.flatten(1)


IN_PYTHON = {
    # --- data ---
    "a data set in capitals": (lambda d: data.load("MNIST"), "unknown data set 'MNIST'; known: "),
    "a data set with a slip": (
        lambda d: data.load("minst"),
        "unknown data set 'minst'; did you mean 'mnist'",
    ),
    "a data set by path": (
        lambda d: data.load("../digits"),
        "unknown data set '../digits'; did you mean 'digits'?",
    ),
    "a data set in letters of another kind": (
        lambda d: data.load("числа"),
        "unknown data set 'числа'; known: ",
    ),
    "a data folder that is a file": (
        lambda d: (
            d.environment("PANNING_DATA", d.file("data", "text")),
            data.load("cifar10-jpeg"),
        ),
        "a data set of this kind is a folder in PANNING_DATA",
    ),
    "no data folder": (
        lambda d: (
            d.environment("PANNING_DATA", d.folder / "nowhere"),
            data.load("cifar10-jpeg"),
        ),
        "train.parquet is missing or damaged",
    ),
    "a parquet file of other columns": (
        lambda d: d.parquet(picture=[1], target=[2]),
        "it needs an image column (img or image) and a label column",
    ),
    "a parquet file of paths": (
        lambda d: d.parquet(image=["a.png"], label=[0]),
        "train.parquet is missing or damaged",
    ),
    "a parquet file without rows": (
        lambda d: d.parquet(image=[], label=[]),
        "train.parquet is missing or damaged: need at least one array to stack",
    ),
    "images and labels swapped": (
        lambda d: d.arrays(x_train=np.arange(20), y_train=np.zeros((20, 1, 4, 4))),
        "mine: train images have shape (20,); they must be [n, channels, height, width]",
    ),
    "images of words": (
        lambda d: d.arrays(x_train=np.full((20, 1, 4, 4), "a")),
        "mine: train images are <U1; they must be numbers",
    ),
    "images of complex numbers": (
        lambda d: d.arrays(x_train=np.full((20, 1, 4, 4), 1j)),
        "mine: train images are complex128; they must be numbers",
    ),
    "images without pixels": (
        lambda d: d.arrays(x_train=np.zeros((20, 1, 0, 4)), x_test=np.zeros((20, 1, 0, 4))),
        "mine: train images have shape (20, 1, 0, 4)",
    ),
    "rows of unequal length": (
        lambda d: d.arrays(x_train=[[1], [1, 2]]),
        "mine: these are not arrays of images and labels",
    ),
    "NaN in a pixel": (
        lambda d: d.arrays(x_train=np.full((20, 1, 4, 4), NAN)),
        "mine: train images hold values that are not finite numbers in float32",
    ),
    "labels from 1": (
        lambda d: d.arrays(y_train=np.arange(20) % 4 + 1),
        (
            "labels go up to 4 and no training image has label 0; they must be 0, 1, 2, ..."
            " without a gap"
        ),
    ),
    "a huge label": (
        lambda d: d.arrays(y_test=np.full(20, 10**12)),
        "labels go up to 1000000000000 and no training image has label 4",
    ),
    "a negative label": (
        lambda d: d.arrays(y_train=np.arange(20) % 4 - 1),
        "mine: train labels must be integers from 0, got int64 such as -1",
    ),
    "labels in words": (
        lambda d: d.arrays(y_train=np.array(["cat", "dog"] * 10)),
        "mine: train labels must be integers from 0, got <U3 such as cat",
    ),
    "a label too few": (
        lambda d: d.arrays(y_train=np.arange(19) % 4),
        "mine: train labels have shape (19,) for 20 images",
    ),
    "half an image of each class": (
        lambda d: data.balanced_batch(d.digits.train, 0.5, torch.Generator()),
        "per_class is 0.5; it must be a whole number from 1",
    ),
    "more images than there are": (
        lambda d: data.balanced_batch(d.digits.train, 1000, torch.Generator()),
        "class 0 has 125 images; a scoring batch needs 1000 of every class",
    ),
    # --- models ---
    "a model in capitals": (
        lambda d: models.build("LeNet300", (1, 8, 8), 10, 0),
        "unknown model 'LeNet300'; did you mean 'lenet300'",
    ),
    "a model that is a list": (
        lambda d: models.build(["lenet300"], (1, 8, 8), 10, 0),
        "unknown model ['lenet300']; did you mean 'lenet300'",
    ),
    "a shape without channels": (
        lambda d: models.build("lenet300", (8, 8), 10, 0),
        "input_shape is (8, 8); it must be (channels, height, width)",
    ),
    "a side for a shape": (
        lambda d: models.build("lenet300", 8, 10, 0),
        "input_shape is 8; it must be (channels, height, width)",
    ),
    "a shape with the height negative": (
        lambda d: models.build("resnet20", (1, -8, 8), 10, 0),
        "height is -8; it must be a whole number from 1",
    ),
    "a model for no classes": (
        lambda d: models.build("lenet300", (1, 8, 8), 0, 0),
        "classes is 0; it must be a whole number from 1",
    ),
    "a model for classes in words": (
        lambda d: models.build("lenet300", (1, 8, 8), "10", 0),
        "classes is '10'; it must be a whole number from 1",
    ),
    "a negative seed": (
        lambda d: models.build("lenet300", (1, 8, 8), 10, -1),
        "seed is -1; it must be a whole number from 0",
    ),
    "a seed of 70 bits": (
        lambda d: models.build("lenet300", (1, 8, 8), 10, 2**70),
        "seed is 1180591620717411303424; it must be a whole number from 0 to 2^62",
    ),
    "a model too small for its images": (
        lambda d: models.build("lenet5", (1, 8, 8), 10, 0),
        "lenet5 needs images of at least 16x16 pixels, got 8x8",
    ),
    "a network without layers to prune": (
        lambda d: masks.ones(Silent()),
        "this Silent has no Conv2d and no Linear, so there is nothing to prune",
    ),
    "a class for a network": (
        lambda d: masks.ones(nn.Linear),
        "a network is an nn.Module, such as models.build gives, not <class",
    ),
    "a name for a network": (
        lambda d: d.prune(model="lenet300"),
        "a network is an nn.Module, such as models.build gives, not 'lenet300'",
    ),
    "weights for a network": (
        lambda d: d.train(model=d.model.state_dict()),
        "a network is an nn.Module, such as models.build gives, not OrderedDict",
    ),
    # --- masks ---
    "a density in percent": (
        lambda d: masks.keep_top(d.scores, 98),
        "density is 98; it is the fraction kept, in [0, 1], for example 0.1 for one tenth",
    ),
    "a density in words": (
        lambda d: masks.keep_top(d.scores, "0.5"),
        "density is '0.5'; it is the fraction kept",
    ),
    "a density of NaN": (
        lambda d: masks.keep_effective(d.model, d.scores, NAN),
        "density is nan; it is the fraction kept",
    ),
    "an effective density above 1": (
        lambda d: masks.keep_effective(d.model, d.scores, 1.1),
        "density is 1.1; it is the fraction kept",
    ),
    "an effective density of 0": (
        lambda d: masks.keep_effective(d.model, d.scores, 0),
        "density 0 leaves 0 of 50,200 weights, too few for a path",
    ),
    "no scores": (
        lambda d: masks.keep_top({}, 0.5),
        "scores are a dict of float tensors (float16, float32 or float64), one for each layer",
    ),
    "a mask for scores": (
        lambda d: masks.keep_top(d.mask, 0.5),
        "scores are a dict of float tensors",
    ),
    "arrays for scores": (
        lambda d: masks.keep_top({"fc1.weight": np.ones(3)}, 0.5),
        "scores are a dict of float tensors",
    ),
    "NaN among the scores": (
        lambda d: masks.keep_top({"fc1.weight": torch.tensor([1.0, NAN])}, 0.5),
        "the scores hold NaN; a score must be a number for every weight",
    ),
    "a scope with a slip": (
        lambda d: masks.keep_top(d.scores, 0.5, "layer"),
        "unknown scope 'layer'; did you mean 'layerwise'?",
    ),
    "no mask": (
        lambda d: masks.effective(d.model, None),
        "a mask is a dict from names such as fc1.weight to boolean tensors, not None",
    ),
    "arrays for a mask": (
        lambda d: d.train(mask={name: m.numpy() for name, m in d.mask.items()}),
        "a mask is a dict from names such as fc1.weight to boolean tensors",
    ),
    "a mask of numbers": (
        lambda d: compaction.compact(d.model, {name: m.float() for name, m in d.mask.items()}),
        "the mask's fc1.weight is torch.float32; a mask is boolean",
    ),
    "a mask that is elsewhere": (
        lambda d: masks.check(d.model, {name: m.to("meta") for name, m in d.mask.items()}),
        "the mask's fc1.weight is on meta and the network on cpu",
    ),
    "the mask of another network": (
        lambda d: metrics.snip(d.model, masks.ones(d.other), d.batch),
        (
            "the mask is of another network: fc1.weight is (300, 36) in the mask, (300, 64) in"
            " the network"
        ),
    ),
    "half a mask": (
        lambda d: metrics.force(d.model, {"fc1.weight": d.mask["fc1.weight"]}, d.batch),
        "the mask is of another network: it lacks fc2.weight, fc3.weight",
    ),
    "a mask saved to nowhere": (
        lambda d: masks.save(d.mask, d.folder / "no" / "mask.npz"),
        "mask.npz: No such file or directory",
    ),
    "a mask of numbers saved": (
        lambda d: masks.save(d.scores, d.folder / "mask.npz"),
        "a mask is a dict of boolean tensors, not {'fc1.weight': tensor(",
    ),
    "a mask file that is missing": (
        lambda d: masks.load(d.folder / "mask.npz"),
        "mask.npz is not a readable mask: [Errno 2]",
    ),
    "a mask file that is a folder": (
        lambda d: masks.load(d.file("mask.npz")),
        "mask.npz is not a readable mask: [Errno 21] Is a directory",
    ),
    "a mask file that is empty": (
        lambda d: masks.load(d.file("mask.npz", b"")),
        "mask.npz is not a readable mask: File is not a zip file",
    ),
    "a mask file of numbers": (
        lambda d: masks.load(d.archive(a=np.ones(3))),
        "given.npz is not a mask: a mask is an archive of boolean arrays",
    ),
    "a policy for a mask": (
        lambda d: masks.load(policies.FOLDER / f"{policies.SHIPPED}.npz"),
        "is not a mask: a mask is an archive of boolean arrays",
    ),
    "a mask file of another network": (
        lambda d: (
            masks.save(masks.ones(d.other), d.folder / "m"),
            masks.load(d.folder / "m", d.model),
        ),
        "the mask is of another network: fc1.weight is (300, 36)",
    ),
    # --- batches, metrics and options ---
    "an empty batch": (
        lambda d: d.prune(batches=(d.batch[0][:0], d.batch[1][:0])),
        (
            "images and labels are torch.float32 [0, 1, 8, 8] and torch.int64 [0]; they must be"
            " tensors [n, channels"
        ),
    ),
    "labels before images": (
        lambda d: metrics.snip(d.model, d.mask, d.batch[::-1]),
        "images and labels are torch.int64 [20] and torch.float32 [20, 1, 8, 8]; they must be",
    ),
    "images without labels": (
        lambda d: d.prune(batches=d.batch[0]),
        (
            "batches are a pair (images, labels), a list of such pairs or an iterator of them,"
            " not Tensor"
        ),
    ),
    "a pair as a list": (
        lambda d: d.prune(batches=list(d.batch)),
        "a batch is a pair (images, labels), such as data.balanced_batch gives, not Tensor",
    ),
    "a data set for a batch": (
        lambda d: d.prune(batches=d.digits.train),
        (
            "batches are a pair (images, labels), a list of such pairs or an iterator of them,"
            " not Split"
        ),
    ),
    "arrays for a batch": (
        lambda d: d.prune(batches=tuple(t.numpy() for t in d.batch)),
        "a batch is a pair (images, labels), such as data.balanced_batch gives, not ndarray",
    ),
    "no batches": (lambda d: d.prune(batches=[]), "the batches ended before round 1 of 1"),
    "too few batches": (
        lambda d: d.prune(method="synflow", rounds=3, batches=iter([d.batch])),
        "the batches ended before round 2 of 3; pass a list to use them in turn",
    ),
    "images of another size": (
        lambda d: d.prune(method="panning", batches=(torch.zeros(4, 1, 7, 7), torch.arange(4))),
        "it takes [1, 8, 8]) can not read images [1, 7, 7] of torch.float32 on cpu",
    ),
    "images with colours": (
        lambda d: metrics.grasp(d.model, d.mask, (d.batch[0].expand(-1, 3, -1, -1), d.batch[1])),
        "it takes [1, 8, 8]) can not read images [3, 8, 8]",
    ),
    "images of bytes": (
        lambda d: d.prune(batches=(d.batch[0].byte(), d.batch[1])),
        "can not read images [1, 8, 8] of torch.uint8 on cpu",
    ),
    "a network in float64": (
        lambda d: d.prune(model=models.build("lenet300", (1, 8, 8), 10, 0).double()),
        "the network (torch.float64 on cpu, it takes [1, 8, 8]) can not read images",
    ),
    "NaN in an image": (
        lambda d: d.prune(method="panning", rounds=2, batches=(d.batch[0] * NAN, d.batch[1])),
        "the images hold values that are not finite numbers",
    ),
    "labels from 1 in a batch": (
        lambda d: metrics.snip(d.model, d.mask, (d.batch[0], d.batch[1] + 1)),
        "labels go from 1 to 10; the network knows the classes 0 to 9",
    ),
    "labels one-hot": (
        lambda d: d.prune(batches=(d.batch[0], nn.functional.one_hot(d.batch[1]))),
        "torch.int64 [20, 10]; they must be tensors [n, channels, height, width] and int64 [n]",
    ),
    "a network for fewer classes": (
        lambda d: d.prune(model=models.build("lenet300", (1, 8, 8), 5, 0)),
        "labels go from 0 to 9; the network knows the classes 0 to 4",
    ),
    "a method in capitals": (lambda d: d.prune(method="SNIP"), "unknown pruner 'SNIP'; known: "),
    "a learner for a pruner": (
        lambda d: d.prune(method="gumbel-softmax"),
        "unknown pruner 'gumbel-softmax'",
    ),
    "a list of methods": (
        lambda d: d.prune(method=["snip"]),
        "unknown pruner ['snip']; did you mean 'snip'",
    ),
    "pruning to percent": (
        lambda d: d.prune(density=2),
        "density is 2; it is the fraction kept, in [0, 1]",
    ),
    "pruning to nothing": (
        lambda d: d.prune(density=0),
        "density 0 keeps none of 50,200 weights; the least is 2.0e-05",
    ),
    "rounds and a half": (
        lambda d: d.prune(rounds=1.5),
        "rounds is 1.5; it must be a whole number from 1",
    ),
    "a seed in words": (
        lambda d: d.prune(seed="0"),
        "seed is '0'; it must be a whole number from 0",
    ),
    "a mix of one": (
        lambda d: d.prune(method="panning", mix=1),
        (
            "mix is 1; it needs three coefficients of at least 0, not all 0, for synflow, snip,"
            " grasp"
        ),
    ),
    "a mix with infinity": (
        lambda d: d.prune(method="panning", mix=(1, INF, 0)),
        "mix is (1, inf, 0); it needs three coefficients",
    ),
    "an option with a slip": (
        lambda d: d.prune(method="prospr", options={"step": 1}),
        "unknown option of prospr 'step'; did you mean 'steps'?",
    ),
    "an option of another kind": (
        lambda d: d.prune(method="prospr", options={"steps": "3"}),
        "option steps of prospr is '3'; it must be int, like 3",
    ),
    "an option of NaN": (
        lambda d: d.prune(method="prospr", options={"lr": NAN}),
        "option lr of prospr is nan; it must be float, like 0.1",
    ),
    "an option where there is none": (
        lambda d: d.prune(options={"steps": 1}),
        "snip has no options, got 'steps'",
    ),
    # --- policies and networks from disk ---
    "a policy with a slip": (
        lambda d: policies.load("genral-1"),
        "unknown policy 'genral-1'; did you mean 'general-1'?",
    ),
    "a number for a policy": (
        lambda d: d.prune(method="panning-agent", policy=3),
        "unknown policy 3; known: general-1",
    ),
    "a policy file that is missing": (
        lambda d: policies.load("no/such.npz"),
        "no/such.npz is not a policy: [Errno 2]",
    ),
    "a policy saved to nowhere": (
        lambda d: policies.load("general-1").save(d.folder / "no" / "policy.npz"),
        "policy.npz: No such file or directory",
    ),
    "half a policy file": (
        lambda d: policies.load(d.saved(lambda content: content[: len(content) // 2])),
        (
            "given.npz is not a policy: File is not a zip file; a policy is a file that"
            " Actor.save wrote"
        ),
    ),
    "a mask for a policy": (
        lambda d: policies.load(d.archive(**{"fc1.weight": np.ones((3, 7), bool)})),
        "given.npz is not a policy: 'card'; a policy is a file that Actor.save wrote",
    ),
    "a policy that answers with words": (
        lambda d: d.prune(method="panning-agent", policy=lambda seen: "abc", rounds=2),
        "a policy answers with three numbers in [-1, 1], not 'abc'",
    ),
    "a policy that answers with NaN": (
        lambda d: d.prune(method="panning-agent", policy=lambda seen: [NAN] * 3, rounds=2),
        "a policy answers with three numbers in [-1, 1], not [nan, nan, nan]",
    ),
    "a policy that answers with two numbers": (
        lambda d: d.prune(method="panning-agent", policy=lambda seen: [0, 0], rounds=2),
        "a policy answers with three numbers in [-1, 1], not [0, 0]",
    ),
    "a network file that is missing": (
        lambda d: networks.load("nowhere.json"),
        "nowhere.json is not a readable network: [Errno 2]",
    ),
    "a network file in another format": (
        lambda d: networks.load(policies.FOLDER / f"{policies.SHIPPED}.npz"),
        "is not a readable network: 'utf-8' codec can't decode",
    ),
    "a network of brackets": (
        lambda d: networks.load(d.file("n.json", "[" * 10_000)),
        "n.json is not a readable network: maximum recursion depth",
    ),
    "a network that is a list": (
        lambda d: networks.rebuild([]),
        "this is not a network that was recorded here: TypeError",
    ),
    "a network of billions": (
        lambda d: d.card(input_shape=[1, 30_000, 30_000]),
        (
            "this is not a network that was recorded here: ValueError it would have"
            " 270,000,031,000 weights"
        ),
    ),
    "a network for no classes": (
        lambda d: d.card(classes=0),
        (
            "this is not a network that was recorded here: classes is 0; it must be a whole"
            " number from 1"
        ),
    ),
    "a network of another name": (
        lambda d: d.card(model="lenet30"),
        (
            "this is not a network that was recorded here: unknown model 'lenet30'; did you mean"
            " 'lenet300'"
        ),
    ),
    # --- training and learners ---
    "a name for a data set": (
        lambda d: d.train(splits="digits"),
        "a data set is what data.load or data.from_arrays gives, not 'digits'",
    ),
    "a part for a data set": (
        lambda d: d.train(splits=d.digits.train),
        "a data set is what data.load or data.from_arrays gives, not Split(",
    ),
    "a data set of other images": (
        lambda d: d.train(model=d.other, mask=masks.ones(d.other)),
        "it takes [1, 6, 6]) can not read images [1, 8, 8]",
    ),
    "a data set of more classes": (
        lambda d: d.train(
            splits=d.arrays(
                **{
                    f"{a}_{p}": v
                    for p in ("train", "test")
                    for a, v in (("x", np.zeros((24, 1, 8, 8))), ("y", np.arange(24) % 12))
                }
            )
        ),
        "the network knows the classes 0 to 9",
    ),
    "a frozen network": (
        lambda d: d.train(model=d.model.requires_grad_(False)),
        "every parameter is frozen and none could learn; call model.requires_grad_(True)",
    ),
    "a name for a recipe": (
        lambda d: d.train(recipe="mnist"),
        "a recipe is a training.Recipe, or one of training.RECIPES, not 'mnist'",
    ),
    "an engine with a slip": (
        lambda d: d.train(engine="spars"),
        "unknown engine 'spars'; did you mean 'sparse'?",
    ),
    "epochs and a half": (
        lambda d: training.Recipe(epochs=1.5),
        "epochs is 1.5; it must be a whole number from 1",
    ),
    "a batch size in words": (
        lambda d: training.Recipe(batch_size="256"),
        "batch_size is '256'; it must be a whole number from 1",
    ),
    "a learning rate in words": (
        lambda d: training.Recipe(lr="fast"),
        "lr is 'fast'; it must be a number of at least 0",
    ),
    "a learning rate of infinity": (
        lambda d: training.Recipe(lr=INF),
        "lr is inf; it must be a number of at least 0",
    ),
    "a decay with a slip": (
        lambda d: training.Recipe(decay="cosin"),
        "unknown decay 'cosin'; did you mean 'cosine'?",
    ),
    "a precision there is not": (
        lambda d: training.Recipe(precision="fp16"),
        "unknown precision 'fp16'; did you mean 'bf16'",
    ),
    "two networks that are not alike": (
        lambda d: stacked.side_by_side([d.model, d.other]),
        "these networks can not be trained as one",
    ),
    "gates to percent": (
        lambda d: gumbel_softmax.learn(d.model, d.digits, 98, 0),
        "density is 98; it is the fraction kept",
    ),
    "gates of no rate": (
        lambda d: gumbel_softmax.learn(d.model, d.digits, 0.5, 0, lr=0),
        "rates above 0, and forget and penalty of at least 0, got density 0.5, lr 0",
    ),
    "gates on a data set of other images": (
        lambda d: gumbel_softmax.learn(d.other, d.digits, 0.5, 0, epochs=1),
        "it takes [1, 6, 6]) can not read images [1, 8, 8]",
    ),
    "tickets to a negative density": (
        lambda d: iterative_magnitude.iterative_magnitude(d.model, d.digits, -1, 0),
        "density is -1; it is the fraction kept",
    ),
    "tickets to more than all": (
        lambda d: iterative_magnitude.trained_magnitude(d.model, d.digits, 1.5, 0),
        "density is 1.5; it is the fraction kept",
    ),
    "a toy with a rate of infinity": (
        lambda d: toy.Toy(lr=INF),
        "lr of a toy is inf; it must be a number above 0",
    ),
    "an agent for no network": (
        lambda d: learning.Training("lenet5"),
        "networks has 'lenet5'; a network is MODEL/DATA SET, such as lenet5/mnist",
    ),
    "an agent that learns nothing": (
        lambda d: learning.Training("lenet5/mnist", steps=10),
        "random_steps is 2000 of 10 steps; nothing would be learned",
    ),
    # --- a run ---
    "a sparsity in percent": (
        lambda d: d.grid(method="snip", sparsity=98),
        (
            "sparsity is 98; it must be a fraction in [0, 1), for example 0.9 for nine tenths"
            " removed"
        ),
    ),
    "a sparsity with its sign": (
        lambda d: d.grid(method="snip", sparsity="90%"),
        "sparsity is '90%'; it must be a fraction in [0, 1)",
    ),
    "a sparsity of NaN": (
        lambda d: d.grid(method="snip", sparsity=NAN),
        "sparsity is nan; it must be a fraction",
    ),
    "a huge sparsity": (
        lambda d: d.grid(method="snip", sparsity=10**400),
        "it must be a fraction in [0, 1)",
    ),
    "a field with a slip": (
        lambda d: d.grid(sparsitty=0.9),
        "unknown field of a run 'sparsitty'; did you mean 'sparsity'?",
    ),
    "a run without a model": (
        lambda d: studies.expand([{"dataset": "digits"}]),
        "a run lacks model, got {'dataset': 'digits'",
    ),
    "a run of a dict": (lambda d: d.grid(model={"a": 1}), "unknown model {'a': 1}; known: "),
    "a run with a negative seed": (
        lambda d: d.grid(seed=-1),
        "seed is -1; it must be a whole number from 0",
    ),
    "a run with a huge seed": (
        lambda d: d.grid(seed=10**30),
        "it must be a whole number from 0 to 2^62",
    ),
    "a run without a value": (
        lambda d: d.grid(seed=[]),
        "seed of a run is an empty list; it needs at least one value",
    ),
    "a grid that is an entry": (
        lambda d: studies.expand(RUN),
        "a grid is a list of entries like {dataset: digits, model: lenet300}",
    ),
    "a grid without end": (
        lambda d: d.grid(seed=list(range(1000)), per_class=list(range(1, 1001))),
        "an entry of a grid is 1,000,000 runs; it may be 100,000",
    ),
    "a mix in words": (
        lambda d: d.grid(method="panning", mix="sum"),
        "mix is 'sum'; it needs three coefficients",
    ),
    "a mix of two": (
        lambda d: d.grid(method="panning", mix=[[1, 2]]),
        "mix is [1, 2]; it needs three coefficients",
    ),
    "a mix with NaN": (
        lambda d: d.grid(method="panning", mix=[[NAN, 0, 1]]),
        "mix is [nan, 0, 1]; it needs three coefficients",
    ),
    "a mix for SNIP": (
        lambda d: d.grid(method="snip", mix=[[1, 0, 0]]),
        "a mix belongs to panning or panning-product or panning-masked, not to snip",
    ),
    "a run with an option of infinity": (
        lambda d: d.grid(method="prospr", options={"lr": INF}),
        "option lr of prospr is inf; it must be float, like 0.1",
    ),
    "a dense run that is pruned": (
        lambda d: d.grid(sparsity=0.5),
        "a dense run has sparsity 0, nothing to transfer and no returns; name a method",
    ),
    # --- profiles ---
    "an empty profile": (
        lambda d: d.runs(""),
        "tiny.yaml must map each study to its parameters and grid",
    ),
    "a profile that is a list": (
        lambda d: d.runs("- 1"),
        "tiny.yaml must map each study to its parameters and grid",
    ),
    "a profile with an open bracket": (
        lambda d: d.runs("a: ["),
        "tiny.yaml is not YAML: while parsing a flow node",
    ),
    "a profile with a tab": (
        lambda d: d.runs("01_tiny:\n\tgrid: []"),
        "tiny.yaml is not YAML: while scanning for the next token found character '\\t'",
    ),
    "a study twice": (
        lambda d: d.runs("01_tiny: {grid: []}\n01_tiny: {}"),
        "tiny.yaml is not YAML: '01_tiny' is there twice",
    ),
    "a field twice": (
        lambda d: d.runs("01_tiny: {grid: [{dataset: digits, model: lenet300, seed: 1, seed: 2}]}"),
        "tiny.yaml is not YAML: 'seed' is there twice",
    ),
    "a day that is none": (
        lambda d: d.runs("01_tiny: {grid: [{seed: 2026-99-99}]}"),
        "tiny.yaml is not YAML: month must be in 1..12",
    ),
    "a number that is none": (
        lambda d: d.runs("01_tiny: {grid: [{seed: !!int many}]}"),
        "tiny.yaml is not YAML: invalid literal for int()",
    ),
    "a profile in UTF-16": (
        lambda d: (
            (d.checkout.root / "notebooks/profiles/tiny.yaml").write_bytes("a: 1".encode("utf-16"))
            and studies.runs("01_tiny", "tiny")
        ),
        "tiny.yaml is not YAML: 'utf-8' codec",
    ),
    "a profile that holds itself": (
        lambda d: d.runs("01_tiny: {grid: &a [*a]}"),
        "tiny.yaml holds more than 100,000 values, or an anchor inside itself",
    ),
    "a profile that is a folder": (
        lambda d: (
            (d.checkout.root / "notebooks/profiles/mine.yaml").mkdir()
            or studies.runs("01_tiny", "mine")
        ),
        "mine.yaml can not be read (Is a directory); a profile is a text file",
    ),
    "a profile that points nowhere": (
        lambda d: (
            (d.checkout.root / "notebooks/profiles/mine.yaml").symlink_to("nowhere")
            or studies.runs("01_tiny", "mine")
        ),
        "mine.yaml can not be read (No such file or directory)",
    ),
    "a profile with its suffix": (
        lambda d: studies.runs("01_tiny", "tiny.yaml"),
        "unknown profile 'tiny.yaml'; did you mean 'tiny'?",
    ),
    "a study with a slip": (
        lambda d: d.runs("01_tinny: {}"),
        "unknown study in tiny.yaml '01_tinny'; did you mean '01_tiny'?",
    ),
    "a study that is a number": (
        lambda d: d.runs("1: {}"),
        "unknown study in tiny.yaml 1; known: 01_tiny",
    ),
    "an entry with a slip": (
        lambda d: d.runs("01_tiny: {gird: []}"),
        "unknown entry of 01_tiny in tiny.yaml 'gird'; did you mean 'grid'?",
    ),
    "parameters in a list": (
        lambda d: d.runs("01_tiny: {parameters: [epochs]}"),
        "parameters of 01_tiny in tiny.yaml are ['epochs']; they must be names and values",
    ),
    "an agent without a network": (
        lambda d: d.runs("01_tiny: {grid: [{kind: agent, name: mine}]}"),
        "a run of the kind agent lacks networks, got {}",
    ),
    "a kind with a slip": (
        lambda d: d.runs("01_tiny: {grid: [{kind: agenti}]}"),
        "unknown kind of run 'agenti'; did you mean 'agent'",
    ),
    # --- notebooks ---
    "an empty notebook": (lambda d: d.notebook(""), "02_mine.ipynb is not a notebook"),
    "a script for a notebook": (
        lambda d: d.notebook("import torch\n"),
        "02_mine.ipynb is not a notebook",
    ),
    "a notebook that is missing": (
        lambda d: notebooks.check_notebook(d.folder / "x.ipynb", {}),
        "x.ipynb is not a notebook: [Errno 2]",
    ),
    "a notebook without parameters": (
        lambda d: d.notebook(notebook(), epochs=3),
        "02_mine.ipynb has no cell tagged 'parameters'; tag the cell that assigns epochs",
    ),
    "a notebook without a kernel": (
        lambda d: d.notebook(notebook("parameters", kernel=False), epochs=3),
        "save it once in JupyterLab with the kernel Python 3",
    ),
    "an unknown parameter": (
        lambda d: d.notebook(notebook("parameters"), epoch=3),
        "unknown parameter of 02_mine.ipynb 'epoch'; did you mean 'epochs'?",
    ),
    "a parameter that is the runner's": (
        lambda d: (
            d.checkout.profile({"01_tiny": {"parameters": {"device": "cuda"}}}),
            notebooks.reproduce("tiny"),
        ),
        (
            "device is a parameter that the runner itself sets; take it out of the parameters of"
            " 01_tiny"
        ),
    ),
    # --- ledgers ---
    "a ledger that is a folder": (
        lambda d: Ledger(d.file("runs.jsonl")).rows(),
        "runs.jsonl can not be read (Is a directory); a ledger is a file of runs, one a line",
    ),
    "a ledger in a file": (
        lambda d: Ledger(d.file("a", "text") / "runs.jsonl").append(LINE),
        (
            "runs.jsonl (File exists); what is recorded is kept: make room there, or set"
            " PANNING_RESULTS to a folder that can"
        ),
    ),
    "a damaged line": (
        lambda d: d.ledger(b'{"key": ', LINE).rows(),
        "runs.jsonl, line 1: not a run; `python -m panning_core ledger ",
    ),
    "a line of another file": (
        lambda d: d.ledger(LINE, b"root:x:0:0", LINE).failures(),
        "runs.jsonl, line 2: not a run",
    ),
    "a line without results": (
        lambda d: d.ledger({**LINE, "metrics": None}, LINE).rows(),
        "runs.jsonl, line 1: not a run",
    ),
    "a line with NaN": (
        lambda d: d.ledger({**LINE, "metrics": {"test_accuracy": NAN}}, LINE).rows(),
        "runs.jsonl, line 1: not a run",
    ),
    "a result that is not finite": (
        lambda d: Ledger(d.folder / "runs.jsonl").append(
            {**LINE, "metrics": {"test_accuracy": NAN}}
        ),
        "holds a number that is not finite",
    ),
    "a line that was edited": (
        lambda d: d.swept({**LINE, "run": {**LINE["run"], "sparsity": 0.6}}),
        "a line was edited: its key is that of",
    ),
    "no other ledger": (
        lambda d: d.ledger(LINE).merge(d.folder / "nowhere.jsonl"),
        "nowhere.jsonl: no such ledger",
    ),
    "a ledger merged from a folder": (
        lambda d: d.ledger(LINE).merge(d.folder),
        "can not be read (Is a directory); a ledger is a file of runs",
    ),
    "a ledger merged with a number too large": (
        lambda d: Ledger(d.folder / "mine").merge(
            d.ledger(json.dumps(LINE).replace('{"density": 0.5}', '{"a": 1e999}').encode()).path
        ),
        "holds a number that is not finite",
    ),
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    return Desk(tmp_path, monkeypatch)


@pytest.mark.parametrize("do, says", IN_PYTHON.values(), ids=IN_PYTHON)
def test_bad_input_is_one_sentence(desk, do, says):
    with pytest.raises(UserError) as error:
        do(desk)
    told = str(error.value)
    assert says in told and "\n" not in told and len(told) < 1000


#: command -> what is typed -> a part of the last line
COMMANDS = {
    "sweep": {
        "": "error: the following arguments are required: study",
        "01_tiny": "error: unknown profile 'quick'; known: tiny",
        "01_tin --profile tiny": (
            "error: unknown study in profile tiny '01_tin'; did you mean '01_tiny'?"
        ),
        "01_tiny.ipynb --profile tiny": (
            "error: unknown study in profile tiny '01_tiny.ipynb'; did you mean '01_tiny'?"
        ),
        "01_tiny --profile": "error: argument --profile: expected one argument",
        "01_tiny --profile tiny --jobs 0": "error: argument --jobs: '0' is no whole number from 1",
        "01_tiny --profile tiny --jobs two": (
            "error: argument --jobs: 'two' is no whole number from 1"
        ),
        "01_tiny --profile tiny --device gpu": (
            "error: argument --device: 'gpu' is neither cpu nor cuda"
        ),
        "01_tiny --profile tiny --device cuda": (
            "error: device is cuda but PyTorch sees no CUDA device here; use --device cpu"
        ),
        "01_tiny --profile tiny --device cuda:x": (
            "error: argument --device: 'cuda:x' is neither cpu nor cuda"
        ),
        "01_tiny --profile tiny --device cpu:7": (
            "error: argument --device: 'cpu:7' is neither cpu nor cuda"
        ),
        "01_tiny --profile tiny --merge nowhere.jsonl": ("error: nowhere.jsonl: no such ledger"),
        "01_tiny --profile tiny --merge .": (
            "error: . can not be read (Is a directory); a ledger is a file of runs, one a line"
        ),
        "01_tiny --profile tiny --merge requirements.txt": (
            "error: requirements.txt, line 1: not a run; "
        ),
        "01_tiny --profile tiny --merge results/paper/04_panning_agent/runs.jsonl": (
            "runs.jsonl holds no run of 01_tiny in the profile tiny"
        ),
        "01_tiny 02_other --profile tiny": "error: unrecognized arguments: 02_other",
    },
    "run": {
        "papper": "error: unknown profile 'papper'; known: tiny",
        "tiny --only 01_tin": (
            "error: unknown study in profile tiny '01_tin'; did you mean '01_tiny'?"
        ),
        "tiny --only ''": "error: unknown study in profile tiny ''; known: 01_tiny",
        "tiny --only notebooks/01_tiny.ipynb": (
            "error: unknown study in profile tiny 'notebooks/01_tiny.ipynb'"
        ),
        "tiny --jobs 0": "error: argument --jobs: '0' is no whole number from 1",
        "tiny --device gpu": "error: argument --device: 'gpu' is neither cpu nor cuda",
        "tiny --device cuda": (
            "error: device is cuda but PyTorch sees no CUDA device here; use --device cpu"
        ),
        "tiny quick": "error: unrecognized arguments: quick",
    },
    "network": {
        "": "error: the following arguments are required: file",
        "nowhere.json": (
            "error: nowhere.json is not a readable network: [Errno 2] No such file or directory"
        ),
        ".": "error: . is not a readable network: [Errno 21] Is a directory",
        "requirements.txt": (
            "error: requirements.txt is not a readable network: Expecting value: line 1"
            " column 1 (char 0); a network is JSON"
        ),
        "NETWORK --dataset digit": "error: unknown data set 'digit'; did you mean 'digits'?",
        "NETWORK --dataset ''": "error: unknown data set ''; known: ",
        "NETWORK --dataset digits": (
            "error: the network reads images [1, 28, 28] of 10 classes; scikit-learn digits"
            " has [1, 8, 8] of 10"
        ),
    },
    "ledger": {
        "": "error: the following arguments are required: file",
        "nowhere.jsonl": "error: nowhere.jsonl: no such ledger",
        "README.md --repair": "error: README.md is no ledger: none of its lines is a run",
    },
    "bench": {
        "--only trainin": "error: unknown part 'trainin'; did you mean 'training'?",
        "--only ''": "error: unknown part ''; known: agent, agreement",
        "--quik": "error: unrecognized arguments: --quik",
    },
}


@pytest.mark.parametrize(
    "command, typed",
    [(command, typed) for command, rows in COMMANDS.items() for typed in rows],
)
def test_misuse_of_a_command_is_one_sentence_and_exit_code_2(desk, capsys, command, typed):
    desk.patch.setattr(torch.cuda, "is_available", lambda: False)
    desk.patch.chdir(ROOT)
    network = "results/paper/06_gumbel_softmax/network.json"
    words = [word.strip("'") for word in typed.replace("NETWORK", network).split()]
    with pytest.raises(SystemExit) as exit:
        obey(lambda: main([command, *words]))
    told = capsys.readouterr()
    assert (
        exit.value.code == 2
        and COMMANDS[command][typed] in told.err.splitlines()[-1]
        and "Traceback" not in told.err
        and not told.out
    )
    assert not (desk.checkout.root / "results").exists()


@pytest.mark.parametrize(
    "command, says",
    [
        (
            [sys.executable, "-m", "panning_core", "network", "nowhere.json"],
            (
                "error: nowhere.json is not a readable network: [Errno 2] No such file or"
                " directory: 'nowhere.json'"
            ),
        ),
        (
            [sys.executable, "-m", "panning_core", "sweep", "08_cifar11"],
            ("error: unknown study in profile quick '08_cifar11'; did you mean '08_cifar10'?"),
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_misuse_of_a_process_is_one_sentence_and_exit_code_2(command, says):
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith(says)
        and done.stderr.count("\n") == 1
        and not done.stdout
    )


@pytest.mark.parametrize("name", ["PANNING_DATA", "PANNING_RESULTS"])
def test_a_folder_may_be_named_from_home_and_an_empty_name_is_none(desk, name):
    """Else ``~/data`` would be a folder of that name in the checkout, and "" the checkout
    itself.
    """
    found = {"PANNING_DATA": data.folder, "PANNING_RESULTS": panning_core.results}[name]
    desk.environment(name, "")
    assert found().name == name.split("_")[1].lower()
    desk.environment(name, "~/mine")
    assert found() == Path.home() / "mine"
    desk.environment(name, "mine")
    assert found() == panning_core.ROOT / "mine"
