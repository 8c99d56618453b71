"""The playground in JupyterLab, in a real browser; and that what it shows is what the core gives."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from browser import browser  # noqa: F401, a fixture
from checkout import Checkout

from panning_core import ROOT

NOTEBOOK = ROOT / "notebooks" / "playground.ipynb"
LONG = 120_000  # milliseconds; on an idle machine everything below takes a few seconds


@contextmanager
def jupyterlab(checkout, folder):
    """The address of a JupyterLab of its own, with ``checkout`` as its root; it and its kernels are gone afterwards, whatever happens."""
    command = checkout.command("-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={checkout.root}",
                               f"--IdentityProvider.token={secrets.token_hex()}", "--LabApp.extension_manager=readonly")
    own = {name: str(folder / name) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(**command | {"env": command["env"] | own, "stdout": log, "stderr": log})
    try:
        until = time.monotonic() + LONG / 1000
        while not (told := list((folder / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()
            time.sleep(0.1)
        told = json.loads(told[0].read_text())
        yield f"{told['url']}lab/tree/notebooks/playground.ipynb?token={told['token']}"
    finally:
        # The kernels are sessions of their own, and know the server only as their parent.
        family = [server, *psutil.Process(server.pid).children(recursive=True)] if server.poll() is None else []
        for process in family:
            process.terminate()
        server.wait(20)
        for process in psutil.wait_procs(family[1:], 10)[1]:
            process.kill()
