"""Numbers at the edge: right, or one sentence."""

import numpy as np
import pytest
import torch

from panning_core import data, masks, models, pruning, training
from panning_core.errors import UserError

IMAGES, LABELS = np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 3


def learn(x, y, test=None, batch_size=20):
    splits = data.from_arrays(x, y, *(test or (x, y)))
    model = models.build("lenet300", splits.input_shape, splits.classes, seed=0)
    batch = data.balanced_batch(splits.train, 2, torch.Generator().manual_seed(0))
    mask, _ = pruning.prune(model, "snip", 0.3, batch)
    assert masks.count(mask) == round(0.3 * masks.size(mask))
    log = training.train(model, mask, splits, training.Recipe(epochs=1, batch_size=batch_size))
    assert np.isfinite(log["loss"]).all() and log["test_accuracy"].between(0, 1).all()
    return splits


RIGHT = {
    "constant images": dict(x=np.ones_like(IMAGES)),
    "a constant row": dict(x=np.where(np.arange(8) == 0, 0, IMAGES)),
    "a class that the test lacks": dict(test=(IMAGES[LABELS != 1], LABELS[LABELS != 1])),
    "a batch larger than the data": dict(batch_size=10_000),
    "float16": dict(x=IMAGES.astype(np.float16)),
    "bytes": dict(x=(IMAGES * 255).astype(np.uint8)),
    "small labels": dict(y=LABELS.astype(np.int8)),
    "one class": dict(y=LABELS * 0),
    "a thousand classes": dict(
        x=np.random.default_rng(0).random((3000, 8, 8)), y=np.arange(3000) % 1000
    ),
}
WRONG = {
    "a class that no image has": (dict(y=np.where(LABELS == 1, 3, LABELS)), "without a gap"),
    "float labels": (dict(y=LABELS + 0.5), "must be integers from 0, got float64 such as 0.5"),
    "words": (dict(y=np.array(list("abc"))[LABELS]), "must be integers from 0, got <U1 such as a"),
    "NaN": (dict(x=np.where(IMAGES > 0.5, np.nan, IMAGES)), "not finite numbers"),
    "beyond float32": (dict(x=IMAGES * 1e300), "not finite numbers in float32"),
    "one-hot": (dict(y=np.eye(3)[LABELS]), "there must be one label for each image"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_odd_and_right(name):
    learn(**{"x": IMAGES, "y": LABELS} | RIGHT[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_sentence(name):
    how, says = WRONG[name]
    with pytest.raises(UserError, match=says) as told:
        learn(**{"x": IMAGES, "y": LABELS} | how)
    assert "\n" not in str(told.value)


def test_weights_that_are_no_numbers_are_one_sentence(lenet300, digits_batch):
    with torch.no_grad():
        next(lenet300.parameters())[0, 0] = torch.nan
    with pytest.raises(UserError, match="the scores hold NaN; a score must be a number"):
        pruning.prune(lenet300, "snip", 0.1, digits_batch)


@pytest.mark.parametrize("engine", training.ENGINES)
def test_weights_that_are_no_numbers_are_never_right_by_luck(lenet300, digits, engine):
    """Their answers are all NaN, and the largest of these is the first class."""
    scores = {name: w.detach().abs() for name, w in models.prunable(lenet300).items()}
    mask = masks.keep_top(scores, 0.1, "layerwise")
    with torch.no_grad():
        next(lenet300.parameters()).fill_(torch.nan)
    log = training.train(lenet300, mask, digits, training.Recipe(epochs=3), engine)
    assert len(log) == 1 and np.isnan(log.loss).all()
    assert log.test_accuracy.tolist() == log.validation_accuracy.tolist() == [0]
