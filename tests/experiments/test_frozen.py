"""What was recorded stays what it is: the key of every committed ledger line follows from its
run.
"""

import json
from pathlib import Path

import pytest

from panning_core import ROOT
from panning_core.runs import base

LEDGERS = sorted((ROOT / "results" / "paper").glob("*/*.jsonl"))


def _told(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", LEDGERS, ids=_told)
def test_every_recorded_run_has_the_key_it_was_recorded_under(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines
    assert [line["key"] for line in lines] == [base.read(line).key() for line in lines]


def test_nothing_recorded_was_lost():
    assert sum(len(path.read_text().splitlines()) for path in LEDGERS) >= 4090
