"""Masks and networks of other programs: every format comes back, a bad file is one sentence."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from panning_core import compaction, masks, models, zoo
from panning_core.analysis import exchange
from panning_core.errors import UserError


def random_mask(model, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, generator=generator) < density
        for name, w in models.prunable(model).items()
    }


def equal(a, b):
    return list(a) == list(b) and all(
        torch.equal(m, b[name]) and m.dtype == b[name].dtype for name, m in a.items()
    )


FORMS = {
    "booleans": dict,
    "floats": exchange.floats,
    "halves": lambda mask: exchange.floats(mask, torch.float16),
    "weight_mask": exchange.weight_masks,
    "whole numbers": lambda mask: {name: m.to(torch.uint8) for name, m in mask.items()},
    "in another order": lambda mask: dict(reversed(mask.items())),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", [None, "mask.npz", "mask.safetensors"])
def test_a_mask_comes_back_from_every_form(form, file, residual, tmp_path):
    mask = random_mask(residual)
    source = FORMS[form](mask)
    if file:
        exchange.write(source, tmp_path / file)
        source = tmp_path / file
    assert equal(exchange.read(residual, source), mask)


def test_files_are_those_of_other_programs(residual, tmp_path):
    mask = random_mask(residual)
    masks.save(mask, tmp_path / "ours.npz")
    save_file({name: m.float() for name, m in mask.items()}, tmp_path / "theirs.safetensors")
    assert equal(exchange.read(residual, tmp_path / "ours.npz"), mask) and equal(
        exchange.read(residual, str(tmp_path / "theirs.safetensors")), mask
    )
    exchange.write(mask, tmp_path / "mask.npz")
    assert equal(masks.load(tmp_path / "mask.npz", residual), mask)
    exchange.write(exchange.weight_masks(mask), tmp_path / "mask.safetensors")
    assert list(load_file(tmp_path / "mask.safetensors")) == sorted(f"{name}_mask" for name in mask)


def test_torch_prune_gives_and_takes(lenet300, digits_batch):
    mask = random_mask(lenet300)
    before = {name: t.clone() for name, t in lenet300.state_dict().items()}
    fresh = models.build("lenet300", (1, 8, 8), 10, seed=0)
    pruned = models.build("lenet300", (1, 8, 8), 10, seed=0)
    exchange.custom_from_mask(pruned, mask)
    assert torch.equal(
        pruned.fc1.weight, fresh.fc1.weight * mask["fc1.weight"]
    ) and prune.is_pruned(pruned)
    assert equal(exchange.read(lenet300, pruned.state_dict()), mask)
    assert all(torch.equal(t, before[name]) for name, t in lenet300.state_dict().items())

    partly = models.build("lenet300", (1, 8, 8), 10, seed=0)
    prune.l1_unstructured(partly.fc2, "weight", 0.5)
    found = exchange.read(lenet300, partly.state_dict())  # what it does not mask is whole
    assert (
        torch.equal(found["fc2.weight"], partly.fc2.weight_mask.bool())
        and found["fc1.weight"].all()
        and found["fc3.weight"].all()
    )
    assert masks.count(found) == 50200 - 15000


def test_a_plain_state_dict_has_zeros(residual, tmp_path):
    mask = random_mask(residual)
    before = {name: t.clone() for name, t in residual.state_dict().items()}
    state = exchange.zeros(residual, mask)
    assert state.keys() == before.keys()
    for name, t in state.items():
        assert torch.equal(t, before[name] * mask[name] if name in mask else before[name])
    assert all(
        torch.equal(t, before[name]) for name, t in residual.state_dict().items()
    )  # it is a copy
    exchange.write(state, tmp_path / "state.safetensors")
    back = load_file(tmp_path / "state.safetensors")
    assert all(
        torch.equal(t, back[name]) and t.dtype == back[name].dtype for name, t in state.items()
    )
    residual.load_state_dict(back)


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.input_shape = (4,)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_a_shared_tensor_is_0_under_all_its_names_and_not_parted():
    model = Tied()
    mask = {name: torch.eye(4, dtype=torch.bool) for name in models.prunable(model)}
    state = exchange.zeros(model, mask)
    assert torch.equal(state["a.weight"], model.a.weight * torch.eye(4)) and torch.equal(
        state["b.weight"], state["a.weight"]
    )
    with pytest.raises(
        UserError,
        match="a.weight is b.weight too, and torch.nn.utils.prune would part them; use exchange",
    ):
        exchange.custom_from_mask(model, mask)
    assert not prune.is_pruned(model)


@pytest.mark.parametrize(
    "source, says",
    [
        ({}, "a mask is a dict from names such as fc1.weight to tensors"),
        ({3: torch.ones(2)}, "a mask is a dict"),
        (
            lambda mask: {**mask, "fc1.weight": mask["fc1.weight"] * 0.5},
            "fc1.weight is no mask: it holds 0.5, and a mask holds 0 and 1",
        ),
        (
            lambda mask: {**mask, "fc1.weight": mask["fc1.weight"] * torch.nan},
            "fc1.weight is no mask: it holds nan",
        ),
        (
            lambda mask: {**mask, "fc1.weight": mask["fc1.weight"].to(torch.int8) - 1},
            "fc1.weight is no mask: it holds -1",
        ),
        (
            lambda mask: {**mask, "fc1.weight": "kept"},
            "fc1.weight of a mask is 'kept'; it must be a tensor",
        ),
        (
            lambda mask: {**mask, "fc1.weight": mask["fc1.weight"][:5]},
            "another network: fc1.weight is",
        ),
        (
            lambda mask: {"fc1.weight": mask["fc1.weight"]},
            "the mask is of another network: it lacks fc2.weight, fc3.weight",
        ),
        (lambda mask: {**mask, "more.weight": torch.ones(2)}, "this one has no more.weight"),
        (
            lambda mask: {"fc1.bias_mask": torch.ones(300)},
            "fc1.bias_mask is of no weight that is pruned here; these are fc1.weight",
        ),
        (lambda mask: {"fc1.weight_mask": torch.ones(3)}, "another network: fc1.weight is"),
    ],
)
def test_what_is_no_mask_of_the_network_is_one_sentence(source, says, lenet300):
    with pytest.raises(UserError, match=says):
        exchange.read(lenet300, source(random_mask(lenet300)) if callable(source) else source)


def test_damaged_files_are_one_sentence_wherever_the_damage_is(tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    mask, kinds = random_mask(model), {}
    for file in (tmp_path / "mask.safetensors", tmp_path / "mask.npz"):
        exchange.write(mask, file)
        whole = file.read_bytes()
        for place in range(0, len(whole), 3):
            for damaged in (
                whole[:place],
                whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :],
            ):
                file.write_bytes(damaged)
                try:
                    exchange.read(model, file)
                except UserError as error:
                    assert "\n" not in str(error)
                except Exception as error:  # collected, so that one run names every kind
                    kinds.setdefault(f"{file.suffix} {type(error).__name__}", (place, str(error)))
    assert not kinds


def header(text, data=b""):
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


class Trap:
    def __reduce__(self):
        return (exit, (3,))


HOSTILE = {
    "nothing": b"",
    "a header without end": struct.pack("<Q", 2**60) + b"{",
    "no JSON": header("hello"),
    "deep JSON": header("[" * 100_000),
    "a tensor beyond the end": header(
        json.dumps({"0.weight": {"dtype": "BOOL", "shape": [2**40], "data_offsets": [0, 2**40]}})
    ),
    "a shape that is not its data's": header(
        json.dumps({"0.weight": {"dtype": "BOOL", "shape": [7], "data_offsets": [0, 2]}}), b"\1\1"
    ),
    "a type that is none": header(
        json.dumps({"0.weight": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 1]}}), b"\1"
    ),
    "a negative shape": header(
        json.dumps({"0.weight": {"dtype": "BOOL", "shape": [-1], "data_offsets": [0, 1]}}), b"\1"
    ),
    "a pickle": pickle.dumps(Trap()),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_one_sentence(kind, tmp_path):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for name in ("given.safetensors", "given.npz", "given"):
        (tmp_path / name).write_bytes(HOSTILE[kind])
        with pytest.raises(UserError, match=f"{name} is not a readable mask: [^\n]*$"):
            exchange.read(model, tmp_path / name)
    for name in ("given.pt", "given.pth", "given.ckpt"):
        (tmp_path / name).write_bytes(HOSTILE[kind])
        with pytest.raises(
            UserError, match=f"{name} is a pickle, which can do anything when it is read"
        ):
            exchange.read(model, tmp_path / name)


def test_files_that_are_not_there_or_too_large_are_one_sentence(tmp_path, monkeypatch, lenet300):
    for name in ("missing.safetensors", "missing.npz"):
        with pytest.raises(UserError, match=f"{name} is not a readable mask: .*No such file"):
            exchange.read(lenet300, tmp_path / name)
    exchange.write(random_mask(lenet300), tmp_path / "mask.safetensors")
    monkeypatch.setattr(masks, "LARGEST", 1000)
    with pytest.raises(UserError, match="mask.safetensors is not a readable mask: it is too large"):
        exchange.read(lenet300, tmp_path / "mask.safetensors")
    np.savez(tmp_path / "words.npz", **{"fc1.weight": np.array(["x"])})
    with pytest.raises(UserError, match="words.npz is not a readable mask"):
        exchange.read(lenet300, tmp_path / "words.npz")


@pytest.mark.parametrize(
    "tensors, name, says",
    [
        ({}, "a.npz", "a dict of tensors"),
        ({"a": 3}, "a.npz", "a dict of tensors"),
        ({"a": torch.ones(2)}, "a.pt", "must end in .safetensors or .npz"),
        ({"a": torch.ones(2)}, "no/a.npz", "can not be written"),
        ({"a": torch.ones(2)}, "no/a.safetensors", "can not be written"),
        ({"a": torch.ones(2).bfloat16()}, "a.npz", "can not be written"),
    ],
)
def test_what_can_not_be_written_is_one_sentence(tensors, name, says, tmp_path):
    with pytest.raises(UserError, match=f"{says}[^\n]*$"):
        exchange.write(tensors, tmp_path / name)


def test_onnx_files_compute_what_the_network_computes(tmp_path):
    """The full and the compacted network, with BatchNorm's statistics and a residual block, for
    another number of images."""
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            zoo.Block(4, 5, stride=2),
            nn.Flatten(),
            nn.Linear(20, 3),
        )
        nn.init.uniform_(model[1].running_mean)
    model.input_shape = (2, 6, 6)
    mask, x = (
        random_mask(model, 0.07, 5),
        torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1)),
    )
    modes = [module.training for module in model.modules()]
    plain, sizes = nn.Sequential(*model), {}
    plain.load_state_dict(exchange.zeros(model, mask))  # the same modules
    right = plain.eval()(x).detach().numpy()
    plain.train()
    for compact in (False, True):
        path = tmp_path / f"{compact}.onnx"
        exchange.save_onnx(model, mask, path, compact)
        graph = onnx.load(path)
        found = reference.ReferenceEvaluator(graph).run(["output"], {"input": x.numpy()})[0]
        assert np.abs(found - right).max() < 1e-6
        sizes[compact] = sum(np.prod(each.dims) for each in graph.graph.initializer)
    assert (
        sizes[True] < sizes[False] and np.abs(right - right[:1]).max() > 1e-3
    )  # some units are dead, and not all
    assert [module.training for module in model.modules()] == modes


def test_what_onnx_can_not_have_is_one_sentence(tmp_path, lenet300, residual):
    mask = random_mask(lenet300)
    with pytest.raises(
        UserError, match="can not be written: .* is no folder that can be written to"
    ):
        exchange.save_onnx(lenet300, mask, tmp_path / "no" / "a.onnx")
    with pytest.raises(UserError, match="another network"):
        exchange.save_onnx(residual, mask, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="compaction cannot read"):
        exchange.save_onnx(
            nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)),
            {"0.weight": torch.ones(3, 3).bool(), "2.weight": torch.ones(2, 3).bool()},
            tmp_path / "a.onnx",
            compact=True,
        )
    assert not list(tmp_path.iterdir())


def test_a_compacted_network_goes_out_as_a_state_dict(lenet300):
    """Its mask is one of the smaller network, so every form serves it too."""
    small = compaction.compact(lenet300, random_mask(lenet300, 0.02))
    assert equal(exchange.read(small.model, exchange.weight_masks(small.mask)), small.mask)
    assert all(
        torch.equal(t, dict(small.model.state_dict())[name])
        for name, t in exchange.zeros(small.model, small.mask).items()
    )
