"""What every kind of run keeps to, whatever it is about: one battery over ``runs.base.KINDS``."""

import dataclasses
import inspect
import json

import pytest

from panning_core import ROOT
from panning_core.errors import UserError
from panning_core.experiments import studies
from panning_core.experiments.ledger import Ledger
from panning_core.reporting import tables
from panning_core.runs import base

PROFILES = ("quick", "paper")


def committed():
    """Every run of the committed profiles, by kind."""
    found = {kind: [] for kind in base.KINDS}
    for profile in PROFILES:
        for study in studies.profile(profile):
            for run in studies.runs(study, profile):
                found[run.kind].append(run)
    return found


@pytest.fixture(scope="module")
def runs():
    return committed()


@pytest.fixture(scope="module")
def lines():
    """Every line of the committed ledgers, by kind."""
    found = {kind: [] for kind in base.KINDS}
    for path in sorted((ROOT / "results" / "paper").glob("*/runs.jsonl")):
        for line in Ledger(path).rows():
            found[line.get("kind", base.FIRST)].append(line)
    return found


@pytest.mark.parametrize("kind", base.KINDS)
def test_a_kind_is_used_by_a_study(runs, kind):
    assert runs[kind], f"no study has a run of the kind {kind}"


@pytest.mark.parametrize("kind", base.KINDS)
def test_a_kind_that_works_on_a_gpu_says_so(kind):
    found = base.kind(kind)
    assert ("context.device" in inspect.getsource(inspect.getmodule(found))) == found.on_cuda


@pytest.mark.parametrize("kind", base.KINDS)
def test_a_run_is_what_its_line_says(runs, kind):
    """From the ledger's JSON comes an equal run with the same key, and no two runs share a key."""
    for run in runs[kind]:
        said = json.loads(json.dumps(run.canonical()))
        again = base.read({"kind": kind, "run": said})
        assert type(again) is type(run) and again.key() == run.key()
        assert "\n" not in run.name()
    distinct = {json.dumps(run.canonical(), sort_keys=True) for run in runs[kind]}
    assert len({run.key() for run in runs[kind]}) == len(distinct)


@pytest.mark.parametrize("kind", [kind for kind in base.KINDS if kind != base.FIRST])
def test_a_run_on_a_data_set_says_so(runs, kind):
    """So its line has the fingerprint, and data that can not be read are told before any work."""
    for run in runs[kind]:
        assert getattr(run, "dataset", None) in (None, *run.reads())


def test_no_two_kinds_share_a_key(runs):
    keys = [{run.key() for run in found} for found in runs.values()]
    assert len(set.union(*keys)) == sum(map(len, keys))


@pytest.mark.parametrize("kind", base.KINDS)
def test_the_fields_are_plain_have_defaults_and_are_explained(kind):
    cls = base.kind(kind)
    fields = dataclasses.fields(cls)
    assert cls.kind == kind and "seed" in {field.name for field in fields}
    assert dataclasses.MISSING is not next(f.default for f in fields if f.name == "seed")
    told = " ".join(
        doc
        for each in cls.__mro__
        if issubclass(each, base.Run) or dataclasses.is_dataclass(each)
        if (doc := each.__doc__)
    )
    for field in fields:
        assert field.name in told, f"{cls.__name__} does not say what {field.name} is"


@pytest.mark.parametrize("kind", base.KINDS)
@pytest.mark.parametrize("seed", [-1, 1.5, "one", None, True])
def test_a_seed_that_is_no_whole_number_is_one_sentence(runs, kind, seed):
    with pytest.raises(UserError, match="seed") as error:
        dataclasses.replace(runs[kind][0], seed=seed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", base.KINDS)
def test_a_grid_refuses_a_field_that_the_kind_has_not(kind):
    with pytest.raises(UserError, match="unknown field of a run.*'seeed'"):
        studies.expand([{"kind": kind, "seeed": 0}])


@pytest.mark.parametrize("kind", [kind for kind in base.KINDS if kind != base.FIRST])
def test_no_metric_hides_a_field(lines, kind):
    """A frame has both as columns."""
    fields = {field.name for field in dataclasses.fields(base.kind(kind))}
    for line in lines[kind]:
        assert not fields & line["metrics"].keys()
    if lines[kind]:
        assert len(tables.frame(lines[kind])) == len(lines[kind])
