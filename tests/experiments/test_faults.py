"""The suite of faults, once through; ``python -m tests.faults --moments 200`` is the long one."""

import re
import subprocess
import sys

from panning_core import ROOT


def test_every_fault_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what it leaves where an invariant broke
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick", "--seed", "5"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ +\d+ (?!.*BROKEN)", done.stdout, re.M)) == 11 and re.search(
        r"11 moments in \d+ s, 0 broken", done.stdout
    )
