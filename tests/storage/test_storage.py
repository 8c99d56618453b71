"""Every writer on a full disk: one sentence that names the place, what was there stays, nothing
lies beside it, and the next start finishes.
"""

import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panning_core import masks, models, storage, training
from panning_core.agent import policies
from panning_core.analysis import exchange
from panning_core.errors import UserError
from panning_core.reporting import study

SAYS = "can not be written to .*: .*; make room there or choose another place, and start again"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mask():
    return {"a": torch.rand(300, 300) < 0.5}


WRITERS = {
    "mask": lambda path: masks.save(mask(), path / "file.npz"),
    "tensors": lambda path: exchange.write({"a": torch.randn(300, 300)}, path / "file.npz"),
    "safetensors": lambda path: exchange.write(
        {"a": torch.randn(300, 300)}, path / "file.safetensors"
    ),
    "policy": lambda path: policies.load(sorted(policies.FOLDER.glob("*.npz"))[0]).save(
        path / "file.npz"
    ),
    "table, figure, report or page": lambda path: study.write(path / "file.md", "x" * 90_000),
}


def files(path):
    return {each.name: each.read_bytes() for each in path.iterdir()}


@contextmanager
def full_at(size):
    """A limit to the length of files stands for the full disk: it strikes in the middle."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(name, tmp_path):
    write = WRITERS[name]
    write(tmp_path)
    before = files(tmp_path)
    with full_at(2000), pytest.raises(UserError, match=SAYS) as error:
        write(tmp_path)
    assert str(tmp_path / "file") in str(error.value)
    assert files(tmp_path) == before
    write(tmp_path)


def test_a_checkpoint_on_a_full_disk(digits, lenet300, tmp_path, monkeypatch):
    """The training ends with a sentence; the one before is there, and the next start goes on."""
    save, rooms, place = torch.save, [2], tmp_path / "training"

    def limited(state, path):
        rooms[0] -= 1
        return save(state, path) if rooms[0] >= 0 else full()

    weights = {name: w.detach().abs() for name, w in models.prunable(lenet300).items()}
    pruned, recipe = masks.keep_top(weights, 0.1), training.Recipe(epochs=4, batch_size=128)

    def train(**how):
        model = models.build("lenet300", digits.input_shape, digits.classes, seed=0)
        return training.train(model, pruned, digits, recipe, **how)

    monkeypatch.setattr(torch, "save", limited)
    with pytest.raises(UserError, match=SAYS):
        train(checkpoint=place)
    assert [each.name for each in tmp_path.iterdir()] == ["training"]
    monkeypatch.setattr(torch, "save", save)
    assert train(checkpoint=place).equals(train()) and not list(tmp_path.iterdir())


@given(st.binary(max_size=50), st.binary(max_size=50), st.booleans())
@settings(deadline=None)
def test_whole_or_not_at_all(tmp_path_factory, before, after, fails):
    path = tmp_path_factory.mktemp("whole") / "ä 'b'.txt"
    path.write_bytes(before)
    try:
        with storage.whole(path, "it") as part:
            part.write_bytes(after)
            if fails:
                full()
    except UserError:
        assert fails
    assert files(path.parent) == {path.name: before if fails else after}


def test_a_command_that_finds_no_room_anywhere_says_so(capsys):
    from panning_core.__main__ import command_line

    def main():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/place")

    with pytest.raises(SystemExit) as end:
        command_line(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1 and "/some/place" in said
    with pytest.raises(OSError):  # a fault of ours is no full disk
        command_line(lambda: open(os.devnull + "/x"))
