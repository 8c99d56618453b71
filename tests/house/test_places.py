"""Odd places and users with little: whatever the folder is called, whoever may write where, it
works or says one sentence.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import pytest
from bs4 import BeautifulSoup

import panning_core
from panning_core import data
from panning_core.errors import UserError
from panning_core.experiments import profiles, provenance, studies
from panning_core.reporting import notebooks
from tests.checkout import PARAMETERS, SHOWN, Checkout, powerless, state

ODD = 'it\'s "ünï" #1 100% x'


def freeze(folder: Path, may: int) -> None:
    """Nobody can write (``may`` 0o555), or the owner can again (0o755)."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(may if path.is_dir() else may & 0o666)


@pytest.fixture
def odd(tmp_path):
    """An unpacked archive in a folder of an odd name, which nobody can write to; beside it a home
    that is as closed, and results in a folder of such a name."""
    made = Checkout(tmp_path / ODD / "checkout").core()
    made.notebook("01_works", "# A study ✔ ü", PARAMETERS, SHOWN)
    run = {"dataset": "digits", "model": "lenet300", "method": "random", "sparsity": 0.1}
    made.profile({"01_works": {"grid": [{**run, "epochs": 1, "seed": [0, 1]}]}})
    (made.root / "results" / "paper").mkdir(parents=True)
    (made.root / "results" / "paper" / "README.md").touch()
    (tmp_path / "home").mkdir()
    closed = (made.root, tmp_path / "home")
    for folder in closed:
        freeze(folder, 0o555)
    yield made
    for folder in closed:
        freeze(folder, 0o755)


def test_the_worst_day(odd, tmp_path, monkeypatch):
    """All at once, in a locale that knows ASCII alone. Then the results are moved, and nothing is
    done again."""
    results = tmp_path / ODD / "results"
    little = {
        **{"PATH": str(tmp_path), "HOME": str(tmp_path / "home")},
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(odd.root)},
        **{"PANNING_RESULTS": str(results), "MPLCONFIGDIR": matplotlib.get_cachedir()},
    }
    words = [*powerless(), sys.executable, "-m", "panning_core", "run", "tiny", "--jobs", "1"]
    done = subprocess.run(
        words, cwd=odd.root, env=little, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "home").iterdir())
    ledger = results / "tiny" / "01_works" / "runs.jsonl"
    assert ledger.read_text().count('"commit":null') == 2
    for page in sorted((results / "tiny" / "html").glob("*.html")):
        for link in BeautifulSoup(page.read_text(), "html.parser")("a", href=True):
            target = re.sub("[?#].*", "", link["href"])
            if not re.match("https?:", target):
                assert (page.parent / unquote(target)).exists(), (page.name, link["href"])

    moved = results.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("PANNING_RESULTS", str(moved))
    for module in (panning_core, profiles, notebooks):
        monkeypatch.setattr(module, "ROOT", odd.root)
    before = state(moved)
    notebooks.run_study("01_works", "tiny", studies.section("01_works", "tiny"), 1, "cpu")
    assert state(moved) == before and not results.exists()


def test_results_that_nobody_can_write_are_one_sentence_before_any_work(monkeypatch, tmp_path):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(notebooks.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="results can not be written to .*set PANNING_RESULTS"):
        notebooks._make(tmp_path)


SECOND = """
import sys
from pathlib import Path
from panning_core import storage
from panning_core import data
from panning_core.errors import UserError
from panning_core.experiments.ledger import Ledger
folder = Path(sys.argv[1])
def said(what):
    try:
        print(what())
    except UserError as error:
        print("error:", error)
ours, closed = Ledger(folder / "ours.jsonl"), Ledger(folder / "closed.jsonl")
said(lambda: [row["key"] for row in ours.rows()])
said(lambda: ours.append({"key": "b", "run": {}, "metrics": {}}))
said(lambda: closed.rows())
def write():
    with storage.whole(folder / "table.md", "the result") as part:
        part.write_text("")
said(write)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")
def test_a_second_user_reads_and_is_told_what_to_do_to_write(tmp_path):
    """The results are another user's, who lets all read but one ledger."""
    for name, mode in {"ours.jsonl": 0o644, "closed.jsonl": 0o600, "table.md": 0o644}.items():
        (tmp_path / name).write_text('{"key": "a", "run": {}, "metrics": {}}\n')
        (tmp_path / name).chmod(mode)
        os.chown(tmp_path / name, 12345, 12345)
    os.chown(tmp_path, 12345, 12345)
    tmp_path.chmod(0o755)
    words = [*powerless(), sys.executable, "-c", SECOND, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    tmp_path.chmod(0o777)
    assert done.returncode == 0, done.stderr
    read, append, closed, write = done.stdout.splitlines()
    assert read == "['a']"
    assert "can not be written" in append and "set PANNING_RESULTS" in append
    assert "closed.jsonl can not be read (Permission denied)" in closed
    assert "the result can not be written to" in write


@pytest.mark.parametrize("git", ["above", "none"])
def test_an_archive_has_no_commit_though_git_is_above_it_or_nowhere(tmp_path, monkeypatch, git):
    if git == "above":
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        words = ["git", "-C", tmp_path, *who, "commit", "-q", "--allow-empty", "-m", "first"]
        subprocess.run(words, check=True)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inside")
    found = provenance.provenance.__wrapped__("cpu")
    assert found["commit"] is None and found["dirty"] is None


@pytest.mark.parametrize("variable", ["PANNING_RESULTS", "PANNING_DATA"])
def test_a_home_that_nobody_knows_is_one_sentence(variable, monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(panning_core.Path, "expanduser", unknown)
    monkeypatch.setenv(variable, "~/x")
    with pytest.raises(
        UserError, match=f"{variable} begins with ~, and no home folder is known here"
    ):
        {"PANNING_RESULTS": panning_core.results, "PANNING_DATA": data.folder}[variable]()
