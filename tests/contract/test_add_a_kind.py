"""A kind of experiment is added from outside the package: a file with the run, a notebook, a YAML.

Nothing of the package is opened, and yet it is swept, merged, verified, reported and shown.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.checkout import PARAMETERS, Checkout

RUN = '''
from dataclasses import dataclass
from typing import ClassVar

from panning_core.errors import whole
from panning_core.runs import base


@dataclass(frozen=True)
class Square(base.Run):
    """The square of a number."""

    kind: ClassVar[str] = "square"
    seed: int = 0
    number: int = 2

    def __post_init__(self):
        whole("number of a square", self.number)

    def execute(self, context):
        return {"square": self.number**2 + self.seed}


base.KINDS["square"] = Square
'''
NOTEBOOK = """
from panning_core import reporting
study = reporting.Study("01_square", profile, jobs, device)
runs = study.of("square")
study.table(runs[["seed", "number", "square"]], "squares", "Squares.")
study.verdict("Squares grow.", "holds", "All do.", paper="Somebody 2020", n=5, interval="1",
              figure="squares", rule="count")
"""
STUDY = {"grid": [{"kind": "square", "seed": [0, 1, 2, 3, 4], "number": [2, 3]}]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("kind")).core()
    shutil.copy("requirements.txt", made.root)
    made.notebook("01_square", PARAMETERS, NOTEBOOK)
    (made.root / "notebooks" / "01_square.yaml").write_text(json.dumps({"mine": STUDY}))
    (made.root / "square.py").write_text(RUN)
    return made


def command(checkout, *words):
    environment = {**os.environ, "PYTHONPATH": str(checkout.root)}
    return subprocess.run(
        [sys.executable, "-m", "panning_core", *words, "--plugin", "square.py"],
        cwd=checkout.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_kind_from_outside_is_swept_shown_and_verified(checkout):
    folder = checkout.root / "results" / "mine" / "01_square"
    done = command(checkout, "sweep", "01_square", "--profile", "mine", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"square"} and len(lines) == 10
    assert {line["metrics"]["square"] for line in lines} == {4, 5, 6, 7, 8, 9, 10, 11, 12, 13}

    done = command(checkout, "run", "mine", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "Squares grow." in (folder / "README.md").read_text()
    assert (folder / "squares.csv").read_text().splitlines()[1] == "0,2,4"
    page = (folder.parent / "html" / "01_square.runs.html").read_text()
    assert "Kind of run: square" in page and page.count("<tr>") >= 10

    done = command(checkout, "verify", "mine", "--sample", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal to the bit") == 3

    (folder / "runs.jsonl").rename(checkout.root / "other.jsonl")
    words = ("01_square", "--profile", "mine", "--merge", "other.jsonl")
    assert command(checkout, "sweep", *words).stdout == "10 new runs\n"


def test_bad_input_of_a_kind_from_outside_is_one_sentence(checkout):
    bad = {"grid": [{"kind": "square", "number": -1}]}
    (checkout.root / "notebooks" / "profiles" / "bad.yaml").write_text(
        json.dumps({"01_square": bad})
    )
    done = command(checkout, "sweep", "01_square", "--profile", "bad")
    assert done.returncode == 2
    assert done.stderr == "error: number of a square is -1; it must be a whole number from 0\n"


def test_a_study_whose_package_is_missing_is_left_out_and_the_others_run(checkout):
    plugin = checkout.root / "square.py"
    plugin.write_text(
        RUN.replace("    seed: int = 0", '    needs: ClassVar = ("not_there",)\n    seed: int = 0')
    )
    checkout.notebook(
        "02_toy", PARAMETERS, NOTEBOOK.split("runs =")[0].replace("01_square", "02_toy")
    )
    toy = {"grid": [{"kind": "toy", "steps": 20}]}
    own = checkout.root / "notebooks" / "profiles" / "part.yaml"
    own.write_text(json.dumps({"01_square": STUDY, "02_toy": toy}))
    done = command(checkout, "run", "part", "--jobs", "1")
    plugin.write_text(RUN)
    assert done.returncode == 0, done.stderr
    assert (
        "01_square is left out: runs of the kind square need the package not_there" in done.stderr
    )
    assert [line.split()[:3:2] for line in done.stdout.splitlines() if line.startswith("0")] == [
        ["01_square", "left"],
        ["02_toy", "-"],
    ]
