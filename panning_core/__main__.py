"""``python -m panning_core COMMAND``: what each command of ``commands`` does."""

from __future__ import annotations

import codecs
import errno
import locale
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from . import ROOT, commands, plugins, storage
from .errors import UserError


def run(options: Namespace) -> int:
    if options.single:
        from .experiments import words

        return words.run(options.fields, options.device)
    from .reporting import notebooks

    profile = ",".join([options.profile, *options.fields])
    return notebooks.reproduce(profile, options.only, options.jobs, options.device)


def sweep(options: Namespace) -> int:
    from .experiments import studies

    place = studies.folder(options.study, options.profile) / "runs.jsonl"
    if options.merge:
        print(f"{studies.merge(options.study, options.profile, options.merge)} new runs")
        return 0
    rows = studies.sweep(options.study, options.profile, options.jobs, options.device)
    print(f"{options.study}: {len(rows)} runs in {place}")
    return 0


def verify(options: Namespace) -> int:
    from .reporting import verify

    return verify.verify(options.profile, options.sample, options.seed)


def ledger(options: Namespace) -> int:
    from .experiments import ledger

    words, code = ledger.look(options.file, options.repair)
    print(words)
    return code


def network(options: Namespace) -> int:
    from .analysis import networks

    print(networks.evaluate(networks.load(options.file), options.dataset))
    return 0


def bench(options: Namespace) -> int:
    sys.path.insert(0, str(ROOT))
    from benchmarks.__main__ import measure

    return measure(options.quick, options.only)


def lab(options: Namespace) -> int:
    from .reporting import lab

    return lab.start()


def check(options: Namespace) -> int:
    """Every check, also after one has failed."""
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    checks = (
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "ruff", "check", "."),
        ("-m", "mypy"),
        ("-c", lint),
    )
    return max(_python(*words, folder=ROOT) for words in checks)


def test(options: Namespace) -> int:
    return _python("-m", "pytest", *options.words, folder=ROOT)


def python(options: Namespace) -> int:
    return _python(*options.words)


def _python(*words: str, folder: Path | None = None) -> int:
    return subprocess.run([sys.executable, *words], cwd=folder, check=False).returncode


DOES = {
    each.__name__: each
    for each in (run, sweep, verify, ledger, network, bench, lab, check, test, python)
}


def main(words: Sequence[str] | None = None) -> int:
    """Do what ``words`` say; the exit code."""
    options = commands.read(sys.argv[1:] if words is None else words)
    plugins.load_plugins(getattr(options, "plugin", ()))
    if limit := getattr(options, "timeout", None):
        os.environ["PANNING_TIMEOUT"] = str(limit)  # for kernels of notebooks too
    # What reads notebooks would take seconds to prepare for addresses that they do not hold: the
    # package for those counts as not installed.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    return DOES[options.command](options)


#: what the system says of a place that takes no more, or nothing at all
NO_ROOM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)


def command_line(main: Callable[[], int]) -> None:
    """Run ``main`` and exit with its code; bad input is one sentence on stderr and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        place = error.filename or "a file of the results"
        print(f"error: {storage.refused(place, 'what was made', error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; what was recorded is kept, the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)


def speak_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: every text here is
    UTF-8, and what this process starts inherits it."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    speak_utf8()
    command_line(main)
