"""Compiled kernels on disk: no process ever gets another signature's machine code."""

import numba
import numpy as np
import pytest
from numba.core.caching import CacheImpl, IndexDataCacheFile

from panning_core.sparse import cache, kernels


def files(kind, folder):
    return kind(str(folder), "kernel", ("stamp", 1))


def together(kind, folder):
    """Two processes compile a signature each, and both have read the index before either saves."""
    first, second = files(kind, folder), files(kind, folder)
    second._load_index = lambda: {}
    first.save(("one",), "code of one")
    second.save(("two",), "code of two")
    return [files(kind, folder).load((name,)) for name in ("one", "two")]


def test_two_that_compile_at_once_never_mix_up_their_code(tmp_path):
    assert together(cache.Files, tmp_path) == [None, "code of two"]


def test_the_race_is_real(tmp_path):
    """numba's own files: the signature that stays in the index gets the code that was written
    last.
    """
    first, second = (files(IndexDataCacheFile, tmp_path) for _ in range(2))
    second._load_index = lambda: {}
    second._save_data = lambda name, data: None
    second.save(("two",), "code of two")
    first._load_index = lambda: {}
    first._save_index = lambda overloads: None
    first.save(("one",), "code of one")
    assert files(IndexDataCacheFile, tmp_path).load(("two",)) == "code of one"


def test_code_of_an_older_source_is_not_taken_after_a_kill(tmp_path):
    """Killed between data and index, or index and data: it is compiled again."""
    old = cache.Files(str(tmp_path), "kernel", ("stamp", 1))
    old.save(("one",), "old code")
    new = cache.Files(str(tmp_path), "kernel", ("stamp", 2))
    assert new.load(("one",)) is None
    new._save_index = lambda overloads: None
    new.save(("one",), "new code")
    assert new.load(("one",)) is None
    del new._save_index
    new.save(("one",), "new code")
    assert new.load(("one",)) == "new code"


@pytest.mark.skipif(kernels.numba is None, reason="needs numba")
def test_every_kernel_keeps_its_code_so(tmp_path):
    compiled = [
        each
        for each in vars(kernels).values()
        if isinstance(each, numba.core.registry.CPUDispatcher)
    ]
    assert len(compiled) > 5
    assert {type(each._cache._cache_file) for each in compiled} == {cache.Files}
    double = cache.jit(_double)
    assert (double(np.ones(2)) == 2).all() and double(1) == 2


def _double(x):
    return 2 * x


def test_where_nothing_can_be_kept_each_process_compiles_for_itself(monkeypatch):
    """A checkout and a home that are read-only."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert cache.jit(lambda x: x + 1)(1) == 2
