"""Data: what a split is, what a batch is, and what a user reads when the input is wrong."""

import io
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from panning_core import data, masks, metrics, models, pruning, training
from panning_core.datasets import files
from panning_core.errors import UserError


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PANNING_DATA", str(tmp_path))
    data.load.cache_clear()
    yield tmp_path
    data.load.cache_clear()


def arrays(train=50, test=20, classes=5, shape=(1, 4, 4)):
    """Images whose first pixel is their number, so that each can be found again."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, *shape)) for n in (train, test)]
    for images in x:
        images.reshape(len(images), -1)[:, 0] = np.arange(len(images))
    return x[0], np.arange(train) % classes, x[1], np.arange(test) % classes


def test_digits(digits):
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1294, 143, 360]
    assert digits.input_shape == (1, 8, 8) and digits.classes == 10
    assert digits.train.x.dtype == torch.float32 and digits.train.y.dtype == torch.int64
    assert all(
        set(s.y.tolist()) == set(range(10)) for s in (digits.train, digits.validation, digits.test)
    )


def test_validation_is_a_fixed_tenth_of_train_and_disjoint_from_it():
    x, y, xt, yt = arrays()
    splits = data.from_arrays(x, y, xt, yt)
    start, step = (
        splits.test.x[0, 0, 0, 0],
        splits.test.x[1, 0, 0, 0] - splits.test.x[0, 0, 0, 0],
    )  # test pixels: 0, 1, 2, ...
    number = {
        part: ((getattr(splits, part).x[:, 0, 0, 0] - start) / step).round().int()
        for part in ("train", "validation")
    }
    assert len(number["validation"]) == 5 and len(number["train"]) == 45
    assert sorted([*number["train"].tolist(), *number["validation"].tolist()]) == list(range(50))
    for part in ("train", "validation"):
        assert torch.equal(
            getattr(splits, part).y, number[part].long() % 5
        )  # images and labels stay together
    again = data.from_arrays(x + 1, (y + 1) % 5, xt, yt)
    assert torch.equal(
        again.validation.y, (splits.validation.y + 1) % 5
    )  # the same images, whatever they hold
    assert torch.equal(splits.test.y, torch.from_numpy(yt))


def test_pixels_are_standardised_with_the_statistics_of_train_alone():
    x, y, xt, yt = arrays(shape=(2, 4, 4))
    splits = data.from_arrays(x, y, xt, yt)
    assert torch.allclose(splits.train.x.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(splits.train.x.std((0, 2, 3)), torch.ones(2), atol=1e-5)
    other = data.from_arrays(x, y, xt * 7 + 3, yt)
    assert torch.equal(other.train.x, splits.train.x)  # test pixels change nothing but themselves
    slope = (other.test.x - 7 * splits.test.x).flatten(2)
    assert torch.allclose(
        slope, slope[:1, :, :1].expand_as(slope), atol=1e-3
    )  # one affine map for each channel


def test_numbers_that_float32_cannot_tell_apart_are_standardised():
    labels = np.arange(60) % 2
    seconds = 1.7e9 + 10 * labels.reshape(-1, 1) + np.linspace(0, 1, 60).reshape(-1, 1)
    splits = data.from_arrays(seconds, labels, seconds, labels)
    assert splits.train.x.dtype == torch.float32
    assert splits.train.x[splits.train.y == 0].max() < splits.train.x[splits.train.y == 1].min()


def test_a_constant_channel_stays_finite():
    x, y, xt, yt = arrays()
    splits = data.from_arrays(np.ones_like(x), y, np.ones_like(xt), yt)
    assert torch.equal(splits.train.x, torch.zeros_like(splits.train.x))


@pytest.mark.parametrize(
    "shape, expected", [((6,), (6,)), ((4, 5), (1, 4, 5)), ((3, 4, 5), (3, 4, 5))]
)
def test_shapes_of_images_and_feature_rows(shape, expected):
    assert data.from_arrays(*arrays(shape=shape)).input_shape == expected


def test_the_fingerprint_tells_one_pixel():
    x, y, xt, yt = arrays()
    before = data.from_arrays(x, y, xt, yt).fingerprint
    assert data.from_arrays(x.copy(), y, xt, yt).fingerprint == before
    xt[3, 0, 1, 1] += 1e-3
    assert data.from_arrays(x, y, xt, yt).fingerprint != before


def changed(index, value):
    parts = list(arrays())
    parts[index] = value
    return parts


with_nan, with_inf = arrays()[0], arrays()[2]
with_nan[7, 0, 2, 2] = np.nan
with_inf[7, 0, 2, 2] = np.inf


@pytest.mark.parametrize(
    "parts, says",
    [
        (changed(0, np.zeros(50)), "train images have shape"),
        (changed(2, np.zeros((20, 1, 4, 5))), "test images have shape"),
        (changed(0, np.zeros((50, 1, 1, 4, 4))), "train images have shape"),
        (changed(1, np.zeros(49, int)), "train labels have shape"),
        (changed(3, np.zeros((20, 1), int)), "test labels have shape"),
        (changed(1, np.zeros(50)), "train labels must be integers"),
        (changed(3, np.full(20, -1)), "test labels must be integers from 0"),
        (changed(0, with_nan), "train images hold values that are not finite"),
        (changed(2, with_inf), "test images hold values that are not finite"),
        ([np.zeros((0, 1, 4, 4)), np.zeros(0, int), *arrays()[2:]], "train labels have shape"),
    ],
)
def test_bad_arrays_are_named(parts, says):
    with pytest.raises(UserError, match=f"mine: {says}"):
        data.from_arrays(*parts, name="mine")


def test_too_few_training_images_to_hold_any_out_is_an_error():
    with pytest.raises(UserError):
        data.from_arrays(np.ones((1, 4, 4)), np.array([0]), np.ones((1, 4, 4)), np.array([0]))


def test_pixels_beyond_float32_are_an_error():
    x, y, xt, yt = arrays()
    x[3, 0, 1, 1] = 1e300
    with pytest.raises(UserError, match="finite"):
        data.from_arrays(x, y, xt, yt)


# --- the validation split ---


def plain(n):
    """The split as it always was: a tenth, whatever the labels."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    held = max(1, int(n * data.VALIDATION_FRACTION))
    return order[held:].sort().values, order[:held].sort().values


@given(st.lists(st.integers(0, 6), min_size=2, max_size=120))
@settings(max_examples=200, deadline=None)
def test_every_class_is_trained_on_and_those_of_two_images_are_validated(labels):
    labels = torch.tensor(labels)
    sizes = labels.bincount()
    if sizes.max() < 2:
        with pytest.raises(UserError, match="no class has two training images"):
            data.validation_split(labels)
        return
    train, validation = data.validation_split(labels)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert all(each.tolist() == sorted(each.tolist()) for each in (train, validation))
    trained, held = (labels[part].bincount(minlength=len(sizes)) for part in (train, validation))
    assert (trained[sizes > 0] > 0).all() and (held[sizes > 1] > 0).all()
    before = plain(len(labels))
    fair = [labels[part].bincount(minlength=len(sizes)) for part in before]
    if (fair[0][sizes > 0] > 0).all() and (fair[1][sizes > 1] > 0).all():
        assert all(map(torch.equal, (train, validation), before))
    else:
        assert (held == torch.where(sizes > 1, (sizes // 10).clamp_min(1), 0)).all()


def test_a_rare_class_is_in_both_parts_and_a_single_image_is_trained_on():
    """200 images, two of class 1, one of class 2; the plain split would swallow one of them."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    labels = np.zeros(200, int)
    labels[[order[0], order[1]]], labels[order[2]] = (
        1,
        2,
    )  # all three among the first twenty, for validation
    splits = data.from_arrays(
        np.random.default_rng(0).random((200, 4, 4)), labels, np.zeros((3, 4, 4)), np.arange(3)
    )
    assert splits.train.y.bincount().tolist() == [
        178,
        1,
        1,
    ] and splits.validation.y.bincount().tolist() == [19, 1]
    labels[order[2]] = 1  # nothing is left out of either part: but all three are out of train
    assert [
        int((data.validation_split(torch.from_numpy(labels))[k] >= 0).sum()) for k in (0, 1)
    ] == [180, 20]


def test_a_single_image_that_is_trained_on_leaves_the_tenth_as_it_is():
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 2
    labels[order[-1]] = 2
    assert torch.equal(data.validation_split(labels)[1], order[:20].sort().values)


def test_no_class_with_two_images_is_one_sentence():
    with pytest.raises(
        UserError,
        match="no class has two training images; at least 2 are needed, one of them for validation",
    ):
        data.from_arrays(np.zeros((2, 4, 4)), np.arange(2), np.zeros((2, 4, 4)), np.arange(2))


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist", "cifar10-jpeg"])
def test_the_split_of_the_committed_runs_stays(name):
    """The numbers of images of each class in the real sets: none is left out of the plain split, so
    nothing changes."""
    counts = {
        "digits": None,
        "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    }.get(name, [len(range(5000))] * 10)
    labels = (
        data.load("digits").train.y
        if counts is None
        else torch.arange(10).repeat_interleave(torch.tensor(counts))
    )
    assert all(map(torch.equal, data.validation_split(labels), plain(len(labels))))


# --- channels, rows and tokens ---


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (8, 8, 1), (28, 20, 1), (20, 28, 4), (64, 64, 13), (6, 6, 2)]
)
def test_channels_last_is_never_taken_for_channels_first(shape):
    x, y, xt, yt = arrays(shape=shape)
    with pytest.raises(
        UserError,
        match=r"mine: images of shape .* look like \[n, height, width, channels\]; say channels='",
    ):
        data.from_arrays(x, y, xt, yt, "mine")
    last, first = (data.from_arrays(x, y, xt, yt, channels=place) for place in ("last", "first"))
    assert last.input_shape == (shape[2], *shape[:2]) and first.input_shape == shape
    right = data.from_arrays(
        x.transpose(0, 3, 1, 2), y, xt.transpose(0, 3, 1, 2), yt, channels="first"
    )
    assert (
        torch.equal(last.train.x, right.train.x)
        and torch.equal(last.test.x, right.test.x)
        and last.fingerprint == right.fingerprint
    )


@pytest.mark.parametrize(
    "shape",
    [
        (1, 28, 28),
        (3, 32, 32),
        (2, 6, 6),
        (3, 4, 5),
        (16, 4, 4),
        (512, 1, 1),
        (64, 7, 7),
        (3, 64, 4),
        (4, 4, 4),
        (16, 8, 8),
    ],
)
def test_channels_first_is_taken_as_it_is(shape):
    assert data.from_arrays(*arrays(shape=shape)).input_shape == shape


def test_another_place_of_channels_is_one_sentence():
    with pytest.raises(
        UserError, match="unknown place of the channels 'middle'; known: first, last"
    ):
        data.from_arrays(*arrays(), channels="middle")


def test_rows_are_standardised_per_feature():
    x, y, xt, yt = arrays(shape=(3,))
    x, xt = x * [1, 10, 100] + [5, 0, -7], xt * [1, 10, 100] + [5, 0, -7]
    splits = data.from_arrays(x, y, xt, yt)
    assert splits.train.x.shape == (45, 3)
    assert torch.allclose(splits.train.x.mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(
        splits.train.x.std(0), torch.ones(3), atol=1e-4
    )
    two = data.from_arrays(
        np.eye(2), np.zeros(2, int), np.eye(2), np.zeros(2, int)
    )  # one is trained on: it has no deviation
    assert (
        two.train.x.shape == (1, 2) and two.train.x.isfinite().all() and two.test.x.isfinite().all()
    )


def test_tokens_stay_whole_numbers():
    tokens, y = np.random.default_rng(0).integers(0, 50, (60, 7)), np.arange(60) % 3
    splits = data.from_arrays(tokens, y, tokens[:9], y[:9], tokens=True)
    assert (
        splits.train.x.dtype == torch.int64
        and splits.input_shape == (7,)
        and torch.equal(splits.test.x, torch.from_numpy(tokens[:9]))
    )
    for bad in (tokens - 1, tokens + 0.5, tokens[:, :, None]):
        with pytest.raises(
            UserError, match=r"mine: tokens are whole numbers from 0, \[n, length\]"
        ):
            data.from_arrays(bad, y, bad[:9], y[:9], "mine", tokens=True)


def test_crop_and_flip_of_rows_is_one_sentence():
    with pytest.raises(
        UserError,
        match=r"crop and flip are for images .*, got \[5, 8\]; use a recipe without augment",
    ):
        data.crop_and_flip(torch.zeros(5, 8), torch.Generator())


class Mean(nn.Module):
    """The mean of embedded tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.embedding(x).mean(1))


class Patches(nn.Module):
    """Its first ``Linear`` does not read the input."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3)
        return self.out(self.first(x).relu().mean(1))


def token_splits():
    tokens, y = np.random.default_rng(0).integers(0, 50, (60, 7)), np.arange(60) % 3
    return data.from_arrays(tokens, y, tokens[:9], y[:9], tokens=True)


@pytest.mark.filterwarnings("ignore:training on the dense engine")
@pytest.mark.parametrize(
    "make, splits",
    [
        (
            lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)),
            lambda: data.from_arrays(*arrays(60, 9, 3, (8,))),
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
            lambda: data.from_arrays(*arrays(60, 9, 3, (4, 4))),
        ),
        (Patches, lambda: data.from_arrays(*arrays(60, 9, 3, (4, 4)))),
        (Mean, token_splits),
    ],
)
def test_the_shape_of_an_input_is_taken_from_the_batch(make, splits):
    model, splits = make(), splits()
    assert not hasattr(model, "input_shape")
    batch = data.balanced_batch(splits.train, 4, torch.Generator().manual_seed(0))
    mask = masks.keep_top(metrics.snip(model, masks.ones(model), batch), 0.5)
    log = training.train(model, mask, splits, training.Recipe(epochs=2))
    assert (
        len(log) == 2
        and masks.flops(model, mask) > 0
        and models.input_shape(model) == splits.input_shape
    )
    assert all((dict(model.named_parameters())[name][~m] == 0).all() for name, m in mask.items())


def test_noise_for_tokens_is_one_sentence():
    model, splits = Mean(), token_splits()
    batch = data.balanced_batch(splits.train, 4, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="NTK-SAP feeds a network noise, and this one reads tokens"):
        metrics.ntk_sap(model, masks.ones(model), batch)


# --- loaders ---


def loaders(shape=(1, 4, 4), shuffle=True, dtype=torch.float32, **how):
    x, y, xt, yt = (torch.from_numpy(a) for a in arrays(60, 20, 5, shape))
    return [
        DataLoader(TensorDataset(x.to(dtype), y), 16, shuffle=s, **how)
        for x, y, s in ((x, y, shuffle), (xt, yt, False))
    ]


def test_loaders_give_what_they_give():
    train, test = loaders()
    state = torch.get_rng_state()
    splits = data.from_loaders(train, test, "mine", "Mine")
    assert torch.equal(torch.get_rng_state(), state)
    x, y = train.dataset.tensors
    assert (splits.name, splits.title, splits.classes, splits.input_shape) == (
        "mine",
        "Mine",
        5,
        (1, 4, 4),
    )
    assert torch.equal(splits.test.x, test.dataset.tensors[0]) and torch.equal(
        splits.test.y, test.dataset.tensors[1]
    )
    both = torch.cat([splits.train.x, splits.validation.x])
    number = both[:, 0, 0, 0].long()
    assert number.sort().values.tolist() == list(range(60)) and torch.equal(both, x[number])
    assert torch.equal(torch.cat([splits.train.y, splits.validation.y]), y[number])
    torch.rand(3)
    again = data.from_loaders(train, test)
    assert (
        torch.equal(again.train.x, splits.train.x) and again.fingerprint == splits.fingerprint
    )  # the same order, whatever the global state


@pytest.mark.parametrize(
    "shape, dtype, kept",
    [
        ((6,), torch.float32, torch.float32),
        ((5, 6), torch.float16, torch.float32),
        ((2, 3, 4, 4), torch.float64, torch.float32),
        ((6,), torch.int32, torch.int64),
        ((3, 4, 4), torch.uint8, torch.float32),
    ],
)
def test_loaders_of_rows_sequences_videos_and_tokens(shape, dtype, kept):
    train, test = (
        DataLoader([(x.abs().to(dtype), y) for x, y in loader.dataset], 7)
        for loader in loaders(shape)
    )
    splits = data.from_loaders(train, test)
    assert splits.input_shape == shape and splits.train.x.dtype == kept
    assert torch.equal(splits.test.x[3], test.dataset[3][0].to(kept))


def test_a_network_learns_from_loaders():
    splits = data.from_loaders(*loaders((8,)))
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))
    training.train(model, masks.ones(model), splits, training.Recipe(epochs=1))


def bad_loaders():
    train, test = loaders()
    images = torch.zeros(9, 1, 4, 4)
    yield [], test, "mine: train gives no batch"
    yield train, 3, "mine: test is 3; it must be a DataLoader"
    yield {"a": 1}, test, "it must be a DataLoader"
    yield DataLoader(TensorDataset(images)), test, r"mine: train gives \[tensor.*pairs"
    yield [{"x": images}], test, "mine: train gives {'x'.*pairs"
    yield [(images, 3)], test, "pairs"
    yield [(images, torch.zeros(9))], test, "mine: train labels must be integers"
    yield [(images, torch.zeros(8, dtype=torch.long))], test, "mine: train labels have shape"
    yield [(images * torch.nan, torch.zeros(9, dtype=torch.long))], test, "not finite"
    yield (
        [
            (images, torch.zeros(9, dtype=torch.long)),
            (images[..., :3], torch.zeros(9, dtype=torch.long)),
        ],
        test,
        "mine: train gives inputs of the shapes",
    )
    yield (
        [(images[..., :3], torch.zeros(9, dtype=torch.long))],
        test,
        r"inputs are \[1, 4, 3\] in train and \[1, 4, 4\] in test",
    )
    yield (
        [(torch.zeros(9, 8, 8, 3), torch.zeros(9, dtype=torch.long))],
        [(torch.zeros(9, 8, 8, 3), torch.zeros(9, dtype=torch.long))],
        "look like",
    )


@pytest.mark.parametrize("train, test, says", list(bad_loaders()))
def test_bad_loaders_are_one_sentence(train, test, says):
    with pytest.raises(UserError, match=says):
        data.from_loaders(train, test, "mine")


def test_a_set_larger_than_the_memory_is_refused_after_one_batch():
    class Huge(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            Huge.read += 1
            return torch.zeros(3, 224, 224), 0

    with pytest.raises(
        UserError,
        match=r"mine: train is 560,760.5 GiB, 3 times as much while it is read, and this machine",
    ):
        data.from_loaders(DataLoader(Huge(), 2), loaders()[1], "mine")
    assert Huge.read == 2


def test_batches_of_a_loader_come_again_and_follow_from_their_seed():
    train = loaders()[0]

    def drawn(seed, count=9):
        return [y.tolist() for _, y in islice(data.loader_batches(train, seed), count)]

    state = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert drawn(0) == first != drawn(1) and [len(y) for y in first] == [16, 16, 16, 12] * 2 + [16]
    assert first[:4] != first[4:8]  # another order in the second epoch
    with pytest.raises(UserError, match="the loader gives no batch"):
        next(data.loader_batches(DataLoader(TensorDataset(torch.zeros(0, 1))), 0))


def test_prune_takes_a_loader():
    train, _ = loaders()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    state, seen = torch.get_rng_state(), []
    mask, trace = pruning.prune(
        model,
        "iterative-snip",
        0.3,
        train,
        6,
        observe=lambda t, old, new, batch: seen.append(batch[1].tolist()),
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        masks.count(mask) == round(0.3 * 252)
        and len(trace) == 6
        and seen == [y.tolist() for _, y in islice(data.loader_batches(train, 0), 6)]
    )
    again, _ = pruning.prune(model, "iterative-snip", 0.3, train, 6)
    assert all(torch.equal(m, again[name]) for name, m in mask.items())


# --- batches ---


def test_a_balanced_batch_has_the_same_number_of_each_class_without_replacement(digits):
    numbered = data.Split(torch.arange(len(digits.train)).view(-1, 1, 1, 1), digits.train.y, 10)
    smallest = int(digits.train.y.bincount().min())
    x, y = data.balanced_batch(numbered, smallest, torch.Generator().manual_seed(3))
    assert y.tolist() == [label for label in range(10) for _ in range(smallest)]
    assert len(set(x.flatten().tolist())) == 10 * smallest
    assert torch.equal(digits.train.y[x.flatten()], y)


def test_a_balanced_batch_is_a_function_of_its_generator(digits):
    def draw(seed):
        return data.balanced_batch(digits.train, 3, torch.Generator().manual_seed(seed))[0]

    state = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(torch.get_rng_state(), state)
    stream = data.balanced_batches(digits.train, 3, torch.Generator().manual_seed(0))
    assert torch.equal(next(stream)[0], draw(0)) and not torch.equal(next(stream)[0], draw(0))


def test_a_class_with_too_few_images_is_named(digits):
    few = data.Split(torch.zeros(5, 1, 2, 2), torch.tensor([0, 0, 0, 1, 2]), 3)
    with pytest.raises(UserError, match="class 1 has 1 images.* 2 of every class"):
        data.balanced_batch(few, 2, torch.Generator())
    with pytest.raises(UserError, match="class 3 has 0 images"):
        data.balanced_batch(data.Split(few.x, few.y, 4), 1, torch.Generator())
    with pytest.raises(UserError, match="per_class is 0"):
        data.balanced_batch(few, 0, torch.Generator())


def test_crop_and_flip_is_a_shift_and_a_mirror_and_every_one_occurs():
    pad, image = 2, torch.arange(1.0, 1 + 2 * 5 * 6).view(2, 5, 6)
    candidates = []
    for dy in range(-pad, pad + 1):
        for dx in range(-pad, pad + 1):
            for flip in (False, True):
                moved = torch.zeros_like(image)
                for row in range(5):
                    for column in range(6):
                        source = row + dy, (5 - column if flip else column) + dx
                        if 0 <= source[0] < 5 and 0 <= source[1] < 6:
                            moved[:, row, column] = image[:, source[0], source[1]]
                candidates.append(moved)
    out = data.crop_and_flip(image.repeat(1000, 1, 1, 1), torch.Generator().manual_seed(0), pad=pad)
    found = (out[:, None] == torch.stack(candidates)).all(dim=(2, 3, 4))
    assert (found.sum(1) == 1).all()
    assert found.sum(0).min() >= 5  # 1000 draws of 50 transformations


def test_crop_and_flip_keeps_each_image_its_own():
    x = torch.randn(6, 1, 8, 8) + torch.arange(6).view(-1, 1, 1, 1) * 100
    out = data.crop_and_flip(x, torch.Generator().manual_seed(0))
    assert all(abs(float(image[image != 0].mean()) - 100 * i) < 5 for i, image in enumerate(out))


# --- files and names ---


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(folder, shape, image="img", label="label", train=40, test=10):
    folder.mkdir()
    written = {}
    for part, n in (("train", train), ("test", test)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
        written[part] = pixels, np.arange(n) % 4
        pd.DataFrame(
            {
                image: [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)],
                label: np.arange(n) % 4,
            }
        ).to_parquet(folder / f"{part}.parquet")
    return written


@pytest.mark.parametrize(
    "shape, columns", [((6, 5, 3), ("img", "label")), ((6, 5), ("image", "fine_label"))]
)
def test_a_folder_of_parquet_files_is_a_data_set(data_folder, shape, columns):
    written = write_parquet(data_folder / "tiny", shape, *columns)
    assert "tiny" in data.names()
    splits = data.load("tiny")
    assert splits.input_shape == (*shape[2:], 6, 5) if len(shape) == 3 else (1, 6, 5)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [36, 4, 10]
    (train, labels), (test, test_labels) = written["train"], written["test"]
    if len(shape) == 3:
        train, test = train.transpose(0, 3, 1, 2), test.transpose(0, 3, 1, 2)
    expected = data.from_arrays(train, labels, test, test_labels)
    assert torch.equal(splits.test.x, expected.test.x) and torch.equal(
        splits.train.y, expected.train.y
    )


def test_a_damaged_parquet_file_is_named(data_folder):
    write_parquet(data_folder / "tiny", (6, 5, 3))
    file = data_folder / "tiny" / "test.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"test\.parquet is missing or damaged"):
        data.load("tiny")
    file.unlink()
    with pytest.raises(UserError, match=r"test\.parquet is missing or damaged"):
        data.load("tiny")


def test_a_damaged_image_in_a_parquet_file_is_an_error(data_folder):
    write_parquet(data_folder / "tiny", (6, 5, 3))
    file = data_folder / "tiny" / "train.parquet"
    table = pd.read_parquet(file)
    table.at[3, "img"] = {"bytes": b"not a picture", "path": "3.png"}
    table.to_parquet(file)
    with pytest.raises(UserError, match=r"train\.parquet is missing or damaged"):
        data.load("tiny")


@pytest.mark.parametrize("image, label", [("picture", "label"), ("img", "target")])
def test_a_parquet_file_with_other_columns_says_which_it_has_and_needs(data_folder, image, label):
    write_parquet(data_folder / "tiny", (6, 5, 3), image, label)
    with pytest.raises(UserError, match=f"'{image}', '{label}'.*needs an image column"):
        data.load("tiny")


def no_network(*_, **__):
    raise OSError("no route to host")


@pytest.mark.parametrize(
    "name, cls",
    [
        ("mnist", "MNIST"),
        ("fashion-mnist", "FashionMNIST"),
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
    ],
)
def test_a_missing_set_without_network_says_where_it_was_looked_for(
    data_folder, monkeypatch, name, cls
):
    monkeypatch.setattr(getattr(torchvision.datasets, cls), "download", no_network)
    with pytest.raises(
        UserError,
        match=rf"{cls} is missing or damaged in {data_folder}.*no route to host.*PANNING_DATA",
    ):
        data.load(name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08\x03",
        b"\x00\x00\x08\x03\x00\x00\xea\x60\x00\x00\x00\x1c\x00\x00\x00\x1c12345",
        b"garbage" * 100,
    ],
)
def test_a_damaged_torchvision_file_is_an_error_a_user_can_read(data_folder, monkeypatch, content):
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    raw = data_folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="MNIST is missing or damaged"):
        data.load("mnist")


def test_an_unknown_name_offers_near_names(data_folder):
    write_parquet(data_folder / "cifar10-jpeg", (6, 5, 3))
    with pytest.raises(UserError, match="unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(UserError, match="cifar10-jpeg"):
        data.load("cifar10-jpg")
    with pytest.raises(UserError, match="known: .*digits.*mnist"):
        data.load("xyzzy")


# --- the first so many ---


def split(labels):
    """Inputs that are their own number."""
    return data.Split(torch.arange(len(labels))[:, None], torch.tensor(labels), 3)


def test_the_first_so_many_are_the_first():
    part = split([2, 0, 1, 0, 2, 1])
    assert part.first(4).x[:, 0].tolist() == [0, 1, 2, 3] and part.first(4).y.tolist() == [
        2, 0, 1, 0,
    ]  # fmt: skip
    assert part.first(None) is part and part.first(7) is part


@given(
    sizes=st.lists(st.integers(20, 60), min_size=3, max_size=3),
    share=st.floats(0.5, 1),
    order=st.permutations(range(3)),
)
def test_of_inputs_in_the_order_of_their_classes_all_classes_are_among_the_first(
    sizes, share, order
):
    """As in a folder that is read class after class, in whatever order."""
    part = split([label for label in order for _ in range(sizes[label])])
    count = round(share * len(part))
    some = part.first(count)
    assert len(some) == count == len(set(some.x[:, 0].tolist()))
    assert (some.y == part.y[some.x[:, 0]]).all()
    expected = count * torch.tensor(sizes) / len(part)
    assert len(some.y.unique()) == 3
    if len(part.y[:count].unique()) < 3:  # any part of them too
        assert ((torch.bincount(some.y, minlength=3) - expected).abs() <= 1.5).all()
        assert len(some.y[: count // 2].unique()) == 3


def test_few_inputs_are_the_first_though_a_class_is_not_among_them():
    part = split([0] * 50 + [1] * 50 + [2] * 50)
    assert part.first(29).x[:, 0].tolist() == list(range(29))
    assert part.first(30).y.bincount().tolist() == [10, 10, 10]


def test_what_never_changes_is_not_made_noise():
    """A constant, one that is large beside its rounding, and one that changes in the test alone."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=60), np.full(60, 3.3), np.full(60, 1e8), np.zeros(60)], 1)
    y, test = np.arange(60) % 3, x[:20].copy()
    test[:, 3] = 5
    splits = data.from_arrays(x, y, test, y[:20])
    assert splits.train.x[:, 1:].abs().max() < 1e-3 and splits.train.x[:, 0].std() > 0.5
    assert splits.test.x[:, 3].tolist() == [5.0] * 20


def test_a_loader_that_draws_with_replacement_is_refused():
    pairs = TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
    twice = torch.utils.data.WeightedRandomSampler(torch.ones(30), 30)
    with pytest.raises(UserError, match="train draws with replacement, so that copies of one"):
        data.from_loaders(DataLoader(pairs, sampler=twice), DataLoader(pairs))


def test_an_image_with_a_palette_has_the_colours_that_it_shows():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    file = io.BytesIO()
    picture.save(file, "PNG")
    assert files._pixels(file.getvalue()).tolist() == [[[255, 0, 0], [0, 0, 255]]]
