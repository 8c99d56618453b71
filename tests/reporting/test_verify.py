"""verify: fine results pass, whatever was changed is found and named, and nothing is touched."""

import os
import shutil

import matplotlib.pyplot as plt
import pytest
from PIL import Image

import panning_core
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies
from panning_core.experiments.ledger import Ledger
from panning_core.reporting import verify
from panning_core.runs import prune
from tests.checkout import PARAMETERS, SHOWN, Checkout, state


def replace(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A checkout that this process and those it starts take for their own, with a study of two
    runs.
    """
    made = Checkout(tmp_path / "checkout").core()
    made.notebook("01_works", "# A study", PARAMETERS, SHOWN)
    made.profile(
        {
            "01_works": {
                "grid": [
                    {
                        "dataset": "digits",
                        "model": "lenet300",
                        "method": "random",
                        "sparsity": 0.5,
                        "epochs": 1,
                        "seed": [0, 1],
                    }
                ]
            }
        }
    )
    for module in (panning_core, profiles, verify):
        monkeypatch.setattr(module, "ROOT", made.root)
    for name in [name for name in os.environ if name.startswith("PANNING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(made.root))
    return made


def test_fine_results_verify_and_every_change_is_named(made, tmp_path, monkeypatch, capsys):
    ledger, results = made.ledger("01_works"), made.root / "results"
    origin = {
        **studies.provenance("cpu"),
        "seconds": 1,
        "finished": "2026-01-01",
        "data": {"title": "digits"},
    }
    Ledger(ledger).append(
        *(
            {
                "key": run.key(),
                "run": run.canonical(),
                "metrics": studies.execute(run),
                "provenance": origin,
            }
            for run in studies.runs("01_works", "tiny")
        )
    )
    verify.make_again("tiny", tmp_path / "again")
    shutil.copytree(tmp_path / "again" / "tiny", results / "tiny", dirs_exist_ok=True)

    before = state(results)
    assert verify.verify("tiny", 1, seed=7) == 0
    told = capsys.readouterr().out
    assert (
        "8 of 8 files are the same" in told
        and told.count("equal to the bit") == 1
        and told.endswith("tiny: verified\n")
    )
    assert (
        "sample: 1 of the 2 runs that took at most 60 s each; --seed 7 draws the same again" in told
    )
    assert state(results) == before

    def make_again(profile, scratch):
        shutil.copytree(tmp_path / "again", scratch, dirs_exist_ok=True)
        shutil.copy(ledger, scratch / "tiny" / "01_works")

    monkeypatch.setattr(verify, "make_again", make_again)
    plt.imsave(results / "tiny" / "01_works" / "accuracy.png", [[0, 1]])
    assert verify.verify("tiny", 0) == 0 and "picture differs" in capsys.readouterr().out
    replace(results / "tiny" / "01_works" / "seeds.csv", "0,0.", "0,1.")
    replace(results / "tiny" / "01_works" / "verdicts.csv", "holds", "fails")
    assert verify.verify("tiny", 0) == 1
    capsys.readouterr()
    replace(ledger, '"flops_dense":', '"flops_dense":1')  # which no table shows
    assert verify.verify("tiny") == 1
    told = capsys.readouterr().out.splitlines()
    named = [line for line in told if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in named[:3]] == [
        "01_works/accuracy.png",
        "01_works/seeds.csv",
        "01_works/verdicts.csv",
    ]
    assert (
        "picture differs" in named[0]
        and "line 2 holds 'eed,test_accuracy\\n0,1." in named[1]
        and "fails" in named[2]
    )
    assert sorted("beyond rounding (1 %): flops_dense is 1" in line for line in named[3:]) == [
        False,
        True,
    ]
    assert (
        told[3].endswith("5 of 8 files are the same when made again from the ledgers")
        and told[-1] == "tiny: NOT verified"
    )


def test_runs_that_only_a_cuda_device_does_may_be_missing(made):
    one = {
        "dataset": "digits",
        "model": "lenet300",
        "method": "random",
        "sparsity": 0.5,
        "epochs": 1,
    }
    made.profile(
        {
            "01_works": {
                "grid": [{**one, "seed": [0, 1]}],
                "cuda": [{**one, "epochs": 2, "seed": [0, 1]}],
            }
        }
    )
    lines = [
        {"key": run.key(), "run": run.canonical(), "metrics": {}}
        for run in studies.runs("01_works", "tiny")
    ]
    ledger = Ledger(made.ledger("01_works"))
    ledger.append(*lines[1:3])
    with pytest.raises(UserError, match="lacks 1 of 2 runs"):
        verify.ledger_lines("tiny")
    ledger.append(lines[0])
    assert len(verify.ledger_lines("tiny")["01_works"]) == 3


def test_a_ledger_that_lacks_runs_is_named_before_any_work(made):
    with pytest.raises(
        UserError,
        match=(
            "runs.jsonl lacks 2 of 2 runs, so there is nothing to verify yet; './run_all.sh tiny'"
            " does them"
        ),
    ):
        verify.verify("tiny")
    assert not (made.root / "results").exists()


@pytest.mark.parametrize(
    "recorded, again, worst",
    [
        (
            {"a": 1.0, "train_seconds": 1, "stack": 8},
            {"a": 1.0, "train_seconds": 2, "stack": 1, "new": 3},
            0,
        ),
        ({"layers": {"fc1": [1, 2]}}, {"layers": {"fc1": [1, 4]}}, 0.5),
        ({"a": 0.5, "b": [100.0, 100.0]}, {"a": 0.5, "b": [100.0, 99.0]}, 0.01),
        ({"conserved": 4e-16}, {"conserved": 2e-16}, 2e-4),  # a sum that should be 0
        ({"a": None}, {"a": 0.5}, float("inf")),
        ({"diverged": False}, {"diverged": True}, float("inf")),
        ({"a": 1, "gone": 2}, {"a": 1}, float("inf")),
    ],
)
def test_metrics_are_compared_one_by_one(recorded, again, worst):
    found, place = verify.compare(recorded, again)
    assert found == pytest.approx(worst) and bool(place) == (worst > 0)


def test_a_run_within_rounding_is_told_and_passes(monkeypatch, capsys):
    origin = {
        "device": "cpu",
        "processor": "another",
        "versions": {"torch": "2.0"},
        "commit": "a" * 40,
        "dirty": True,
    }
    line = {
        "run": {"dataset": "digits", "model": "lenet300"},
        "metrics": {"test_accuracy": 0.9},
        "provenance": origin,
    }
    for now, passes, words in (
        (0.9, True, "equal to the bit"),
        (
            0.901,
            True,
            (
                "within rounding (1 %): test_accuracy is 0.9 in the ledger and 0.901 here"
                " (recorded by code aaaaaaa+, PyTorch 2.0, another; here by code "
            ),
        ),
        (0.8, False, "beyond rounding"),
    ):
        monkeypatch.setattr(prune, "execute", lambda *_, now=now: {"test_accuracy": now})
        assert verify.repeat("01_a", line) == passes and words in capsys.readouterr().out


def test_a_picture_with_the_same_pixels_may_not_claim_other_runs(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, source in zip(paths, ("2 runs", "3 runs")):
        plt.imsave(path, [[0, 1]], metadata={"Source": source, "Software": None})
    assert verify.difference(*paths) == "was made of '2 runs', and again of '3 runs'"
    Image.open(paths[0]).save(paths[1], compress_level=0, pnginfo=None)
    plt.imsave(paths[0], [[0, 1]], metadata={"Software": None})
    assert paths[0].read_bytes() != paths[1].read_bytes() and verify.difference(*paths) == ""


def test_files_that_are_missing_or_stale_are_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text("1\n")
    assert (
        verify.difference(tmp_path / "a.csv", tmp_path / "b.csv")
        == "does not follow from the ledgers"
    )
    assert (
        verify.difference(tmp_path / "b.csv", tmp_path / "a.csv")
        == "is missing here, and follows from the ledgers"
    )
