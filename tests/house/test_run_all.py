"""run_all.sh: what it refuses, which Python it takes, what it installs. No network: Python is
played by a shell script.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from panning_core import ROOT
from tests.checkout import powerless

PYTHONS = ["python3", "python3.14", "python3.13", "python3.12", "python3.11"]

# Notes its arguments in calls.txt, gives itself on into a new .venv, and fails where the test wants
# it to.
FAKE_PYTHON = r"""#!/bin/sh
case "$1" in */commands.py) exec "$REAL_PYTHON" "$@" ;; esac
echo "$@" >>"$CALLS"
case "$*" in
    *sys.version_info*) echo "$FAKE_VERSION" ;;
    *panning_core.ROOT*) [ -n "$FAKE_ROOT" ] && echo "$FAKE_ROOT" ;;
    "-m venv --clear .venv")
        rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && $FAKE_VENV ;;
    "-m pip install"*) $FAKE_PIP ;;
esac
"""


class Checkout:
    """A copy of the set-up files, with made-up Pythons first on PATH."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.calls_file = (
            folder / 'it\'s a "chéck out"',
            folder / "bin",
            folder / "calls.txt",
        )
        self.root.mkdir()
        self.bin.mkdir()
        for name in [
            "run_all.sh",
            "requirements.txt",
            "pyproject.toml",
            "panning_core/commands.py",
            "notebooks/03_sparsity_sweep.yaml",
        ]:
            (self.root / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        for name in ["python", *PYTHONS]:
            (self.bin / name).write_text(FAKE_PYTHON)
            (self.bin / name).chmod(0o755)

    def run(self, *arguments, before=(), **environment):
        """In a process group of its own, as a terminal gives it, so that a test may stop all of
        it.
        """
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")
        }
        fake = {
            "FAKE_VERSION": "3.12.1",
            "FAKE_ROOT": "",
            "FAKE_VENV": "true",
            "FAKE_PIP": "true",
        }
        fake |= {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "REAL_PYTHON": sys.executable,
        }
        self.calls_file.write_text("")
        return subprocess.run(
            [*before, "bash", self.root / "run_all.sh", *arguments],
            env=inherited | fake | environment,
            cwd=self.bin,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a background job would inherit it ignored
            capture_output=True,
            text=True,
            timeout=60,
        )

    def profile(self, name):
        folder = self.root / "notebooks" / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text("{}")

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines()

    @property
    def installed(self):
        return [call for call in self.calls if call.startswith("-m pip install")]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", ["run_all.sh", ".ci/run"])
def test_the_scripts_parse_and_are_executable(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--help"], ["run", "sweep", "verify", "bench", "test", "lab", "check", "paper"]),
        (["-h"], ["quick", "requirements.txt"]),
        (["paper", "--help"], ["run", "COMMAND"]),
        (["run", "--help"], ["--only", "--jobs", "--device", "--plugin"]),
        (["bench", "--quick", "--help"], ["--quick", "--only"]),
        (["verify", "paper", "--help"], ["--sample", "--seed", "--plugin"]),
    ],
)
def test_help_prints_the_usage_and_touches_nothing(checkout, arguments, words):
    done = checkout.run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    for word in words:
        assert word in done.stdout
    assert not checkout.installed and not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "offending"),
    [
        (["papper"], "'papper'"),
        (["quick", "paper"], "paper"),
        (["--job", "2"], "--job"),
        (["--seed=2"], "--seed"),
        (["paper", "--sample", "2"], "--sample"),
        (["verify", "--jobs", "2"], "--jobs"),
        (["verify", "--only", "a study"], "--only"),
        (["verify", "--sample", "-1"], "--sample"),
        (["verify", "--sample=some"], "'some'"),
        (["verify", "--seed", "0x1"], "'0x1'"),
        (["verify", "bench"], "'bench'"),
        (["verify", "paper", "quick"], "quick"),
        (["-x"], "-x"),
        (["--only"], "--only"),
        (["--only", "--jobs", "2"], "--only"),
        (["paper", "--jobs"], "--jobs"),
        (["--jobs="], "--jobs"),
        (["--jobs", "many"], "'many'"),
        (["--jobs", "0"], "'0'"),
        (["--device", "tpu"], "'tpu'"),
        (["--jobs", "2", "test"], "--jobs"),
        (["lab", "--device", "cpu"], "--device"),
        (["bench", "--jobs", "2"], "--jobs"),
        (["--device=cuda", "bench"], "--device"),
        (["--quick"], "--quick"),
        (["paper", "--quick"], "--quick"),
        (["bench", "--quick", "grid"], "grid"),
        (["mine", "paper"], "paper"),
        (["bench", "mine"], "mine"),
        (["../profiles/mine"], "'../profiles/mine'"),
        (["--plugin"], "--plugin"),
        (["--plugin", "nowhere.py"], "'nowhere.py'"),
        (["--plugin=/nowhere.py", "mine"], "'/nowhere.py'"),
        (["bench", "--plugin", "python"], "--plugin"),
        (["mine", "--sample", "2"], "--sample"),
        (["sweep"], "study"),
        ([""], "''"),
    ],
)
def test_a_misuse_is_one_sentence_and_nothing_is_installed(checkout, arguments, offending):
    checkout.profile("mine")
    done = checkout.run(*arguments)
    assert done.returncode == 2
    assert offending in done.stderr and "see ./run_all.sh --help" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not checkout.installed and not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("version", ["3.9.2", "2.7.18", "3.15.0"])
def test_an_unsuitable_python_is_named(checkout, version):
    done = checkout.run(FAKE_VERSION=version)
    assert done.returncode == 1
    assert (
        "Python 3.11 or newer is needed" in done.stderr
        and f"found {version} (python3)" in done.stderr
    )
    assert not (checkout.root / ".venv").exists()


def test_a_python_without_venv_is_named_and_leaves_nothing(checkout):
    done = checkout.run(FAKE_VENV="false")
    assert done.returncode == 1 and "python3-venv" in done.stderr
    assert not checkout.installed and not (checkout.root / ".venv").exists()


def test_a_checkout_that_can_not_be_written_to_is_one_sentence(checkout):
    before = powerless()
    checkout.root.chmod(0o555)
    done = checkout.run(before=before)
    checkout.root.chmod(0o755)
    assert done.returncode == 1 and not checkout.installed
    assert len(done.stderr.splitlines()) == 1 and "activate an environment" in done.stderr


def test_a_second_start_installs_nothing(checkout):
    first = checkout.run()
    assert first.returncode == 0, first.stderr
    assert [call.split()[-1] for call in checkout.installed] == ["requirements.txt", "."]
    assert checkout.calls[-1] == "-m panning_core"
    assert checkout.run("paper", "--jobs=2", "--only", "a study").returncode == 0
    assert checkout.calls == ["-m panning_core paper --jobs=2 --only a study"]


def test_other_pins_are_installed_over_the_old_ones(checkout):
    checkout.run()
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("# a change\n")
    assert checkout.run().returncode == 0
    assert checkout.installed and "-m venv --clear .venv" not in checkout.calls


def test_after_a_failed_install_the_next_start_goes_on(checkout):
    failed = checkout.run(FAKE_PIP="false")
    assert failed.returncode == 1 and ".venv/install.log" in failed.stderr
    assert checkout.calls[-1].startswith("-m pip install"), "nothing runs after a failed install"
    assert checkout.run().returncode == 0
    assert "-m venv --clear .venv" not in checkout.calls and len(checkout.installed) == 2


@pytest.mark.parametrize("stop", ["kill -9 0", "kill -INT 0"])
def test_an_interrupted_install_is_done_again_from_nothing(checkout, stop):
    assert checkout.run(FAKE_PIP=stop).returncode != 0
    assert checkout.run().returncode == 0
    assert "-m venv --clear .venv" in checkout.calls and len(checkout.installed) == 2


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize(
    "arguments",
    [[], ["paper", "--device", "cuda"], ["verify", "--seed=0", "paper"], ["test", "-k", "masks"]],
)
def test_an_active_environment_with_the_package_is_used_as_it_is(checkout, variable, arguments):
    done = checkout.run(
        *arguments, **{variable: "/some/environment", "FAKE_ROOT": str(checkout.root.resolve())}
    )
    assert done.returncode == 0, done.stderr
    assert checkout.calls[-1] == " ".join(["-m panning_core", *arguments])
    assert not checkout.installed and not (checkout.root / ".venv").exists()


def test_an_active_environment_of_another_checkout_is_not_used(checkout):
    assert (
        checkout.run(VIRTUAL_ENV="/some/environment", FAKE_ROOT="/another/checkout").returncode == 0
    )
    assert checkout.installed and (checkout.root / ".venv").exists()


def test_the_files_are_utf_8_whatever_the_locale_is(checkout):
    beside = checkout.root / "notebooks" / "03_sparsity_sweep.yaml"
    beside.write_text(beside.read_text() + "\n# Größe ✔\nnightly: {}\n", encoding="utf-8")
    assert checkout.run("nightly", LC_ALL="C", PYTHONUTF8="0").returncode == 0


def test_own_profiles_are_offered(checkout):
    assert "it can be quick, paper;" in checkout.run("mien").stderr
    for name in ("mine", "another"):
        checkout.profile(name)
    assert "it can be quick, paper, another, mine;" in checkout.run("mien").stderr
    beside = checkout.root / "notebooks" / "03_sparsity_sweep.yaml"
    beside.write_text(beside.read_text() + "\nnightly: {}\n")
    assert "paper, another, mine, nightly;" in checkout.run("mien").stderr


def test_a_plugin_is_found_from_where_the_user_is(checkout):
    checkout.profile("mine")
    (checkout.bin / "my models.py").write_text("")
    assert checkout.run("mine", "--plugin", "my models.py", "--jobs=2").returncode == 0
    assert checkout.calls[-1] == "-m panning_core mine --plugin my models.py --jobs=2"
