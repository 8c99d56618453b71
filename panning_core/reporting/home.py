"""A folder for Jupyter's own files where the user has no home that can be written to."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

#: where Jupyter and IPython look for such a folder before they look at home
NAMES = ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")


def lend() -> None:
    """Until this process ends, to it and to what it starts; nothing where Jupyter has a place."""
    from jupyter_core.paths import jupyter_runtime_dir

    try:
        os.makedirs(jupyter_runtime_dir(), 0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=jupyter_runtime_dir()).close()
    except (OSError, RuntimeError):  # the latter of a user whose home nobody knows
        lent = tempfile.mkdtemp(prefix="panning-")
        atexit.register(shutil.rmtree, lent, ignore_errors=True)
        os.environ.update(dict.fromkeys(NAMES, lent))
