"""JupyterLab with the notebooks: the playground first, no news, and outputs that git never sees."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from .. import ROOT
from . import home

#: What JupyterLab writes into a notebook's metadata beyond what the committed ones hold.
WRITTEN = (
    "codemirror_mode", "file_extension", "mimetype", "nbconvert_exporter", "pygments_lexer",
    "version",
)  # fmt: skip


def clean_filter() -> str:
    """The command that git hands a notebook through before it compares or commits it."""
    keys = " ".join(f"metadata.language_info.{name}" for name in WRITTEN)
    return f'"{sys.executable}" -m nbstripout --keep-id --extra-keys "{keys}"'


def keep_git_clean() -> None:
    """Set the filter that ``.gitattributes`` names, in this checkout alone."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "config", "filter.nbstripout.clean", clean_filter()]
        with suppress(OSError):  # without git nothing is committed
            subprocess.run(command, check=False)


def start() -> int:
    """Until the user ends it; its exit code."""
    keep_git_clean()
    home.lend()
    settings = [str(ROOT / "notebooks" / ".jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return subprocess.run(
        [
            *(sys.executable, "-m", "jupyterlab"),
            f"--ServerApp.root_dir={ROOT}",
            "--LabApp.default_url=/lab/tree/notebooks/playground.ipynb",
        ],
        env={**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, settings))},
        check=False,
    ).returncode
