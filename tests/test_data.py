"""Data: what a split is, what a batch is, and what a user reads when the input is wrong."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

from panning_core import data
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
    assert all(set(s.y.tolist()) == set(range(10)) for s in (digits.train, digits.validation, digits.test))


def test_validation_is_a_fixed_tenth_of_train_and_disjoint_from_it():
    x, y, xt, yt = arrays()
    splits = data.from_arrays(x, y, xt, yt)
    start, step = splits.test.x[0, 0, 0, 0], splits.test.x[1, 0, 0, 0] - splits.test.x[0, 0, 0, 0]  # test pixels: 0, 1, 2, ...
    number = {part: ((getattr(splits, part).x[:, 0, 0, 0] - start) / step).round().int() for part in ("train", "validation")}
    assert len(number["validation"]) == 5 and len(number["train"]) == 45
    assert sorted([*number["train"].tolist(), *number["validation"].tolist()]) == list(range(50))
    for part in ("train", "validation"):
        assert torch.equal(getattr(splits, part).y, number[part].long() % 5)  # images and labels stay together
    again = data.from_arrays(x + 1, (y + 1) % 5, xt, yt)
    assert torch.equal(again.validation.y, (splits.validation.y + 1) % 5)  # the same images, whatever they hold
    assert torch.equal(splits.test.y, torch.from_numpy(yt))


def test_pixels_are_standardised_with_the_statistics_of_train_alone():
    x, y, xt, yt = arrays(shape=(2, 4, 4))
    splits = data.from_arrays(x, y, xt, yt)
    assert torch.allclose(splits.train.x.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(splits.train.x.std((0, 2, 3)), torch.ones(2), atol=1e-5)
    other = data.from_arrays(x, y, xt * 7 + 3, yt)
    assert torch.equal(other.train.x, splits.train.x)  # test pixels change nothing but themselves
    slope = (other.test.x - 7 * splits.test.x).flatten(2)
    assert torch.allclose(slope, slope[:1, :, :1].expand_as(slope), atol=1e-3)  # one affine map for each channel


def test_a_constant_channel_stays_finite():
    x, y, xt, yt = arrays()
    splits = data.from_arrays(np.ones_like(x), y, np.ones_like(xt), yt)
    assert torch.equal(splits.train.x, torch.zeros_like(splits.train.x))


@pytest.mark.parametrize("shape, expected", [((6,), (1, 1, 6)), ((4, 5), (1, 4, 5)), ((3, 4, 5), (3, 4, 5))])
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


@pytest.mark.parametrize("parts, says", [
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
])
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
        pd.DataFrame({image: [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)], label: np.arange(n) % 4}
                     ).to_parquet(folder / f"{part}.parquet")
    return written


@pytest.mark.parametrize("shape, columns", [((6, 5, 3), ("img", "label")), ((6, 5), ("image", "fine_label"))])
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
    assert torch.equal(splits.test.x, expected.test.x) and torch.equal(splits.train.y, expected.train.y)


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


@pytest.mark.parametrize("name, cls", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_a_missing_set_without_network_says_where_it_was_looked_for(data_folder, monkeypatch, name, cls):
    monkeypatch.setattr(getattr(torchvision.datasets, cls), "download", no_network)
    with pytest.raises(UserError, match=rf"{cls} is missing or damaged in {data_folder}.*no route to host.*PANNING_DATA"):
        data.load(name)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03\x00\x00\xea\x60\x00\x00\x00\x1c\x00\x00\x00\x1c12345", b"garbage" * 100])
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
