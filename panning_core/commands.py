"""Every command and option, in one place: ``./run_all.sh`` and ``python -m panning_core`` read
this.

Only Python's own library is used, so that ``run_all.sh`` can refuse a slip before it has installed
anything::

    python3 panning_core/commands.py paper --jobs 2
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

HELPED = 10  #: exit code of this file when it has shown help
PROFILE = "quick"
#: commands whose words are another program's
HANDED_ON = ("test", "python")

DESCRIPTION = """\
The laboratory for pruning before training. Without a command: run a profile's studies and write
their report (``run``).

  quick    every study on small embedded data, minutes on two cores (the default)
  paper    every study on the published networks and data; finished runs are kept
  PROFILE  one of your own: notebooks/profiles/PROFILE.yaml says which notebooks, and their runs
"""
EPILOG = """\
The first start installs the packages of requirements.txt into .venv (about 4 minutes and 6 GB). If
the active environment already holds this checkout, as after `pip install -r requirements.txt -e .`,
it is used as is.
"""


class Parser(argparse.ArgumentParser):
    """One sentence for a slip."""

    def __init__(self, **settings):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see ./run_all.sh --help\n")


def number(least: int):
    """A whole number from ``least``."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return read


def device(text: str) -> str:
    """``cpu``, ``cuda`` or one of several, such as ``cuda:1``."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    return text


def plugin(text: str) -> str:
    """The path of a Python file."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"it is a Python file, and there is no {text!r}")
    return str(path.resolve())


def _profile(parser: Parser) -> None:
    parser.add_argument("profile", nargs="?", default=PROFILE, metavar="PROFILE")


def _machine(parser: Parser) -> None:
    parser.add_argument("--jobs", type=number(1), metavar="N", help="N runs at a time (all cores)")
    words = "a run that takes longer is recorded as an error, and the others go on (no limit)"
    parser.add_argument("--timeout", type=number(1), metavar="SECONDS", help=words)
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")


def parser() -> Parser:
    """Of every command."""
    whole = Parser(prog="./run_all.sh", description=DESCRIPTION, epilog=EPILOG)
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, words: str, plugins: bool = True) -> Parser:
        made = commands.add_parser(name, help=words, description=words)
        if plugins:
            made.add_argument(
                "--plugin",
                type=plugin,
                action="append",
                default=[],
                metavar="FILE",
                help="a Python file that adds networks, data, metrics, methods or kinds of run",
            )
        return made

    run = command("run", "a profile's studies, their report and the site (the default)")
    words = "FIELD=VALUE behind a profile changes its values; alone, they are one run, such as "
    words += "model=lenet300 data=digits method=panning sparsity=0.95"
    run.add_argument("words", nargs="*", metavar="[PROFILE] [FIELD=VALUE ...]", help=words)
    run.add_argument("--only", metavar="STUDY", help="this study alone")
    _machine(run)

    sweep = command("sweep", "fill the ledger of one study; needs no Jupyter")
    sweep.add_argument("study", help="name of its notebook, such as 03_sparsity_sweep")
    sweep.add_argument("--profile", default=PROFILE)
    _machine(sweep)
    words = "take over the runs of another ledger of this study instead"
    sweep.add_argument("--merge", type=Path, metavar="LEDGER", help=words)

    verify = command("verify", "make a profile's results again from its ledgers, and some runs")
    _profile(verify)
    words = "so many runs, of those that took a minute at most (5)"
    verify.add_argument("--sample", type=number(0), default=5, metavar="N", help=words)
    words = "draws the sample (random, and told)"
    verify.add_argument("--seed", type=number(0), metavar="N", help=words)

    ledger = command("ledger", "is every line of a ledger a run?", plugins=False)
    ledger.add_argument("file", type=Path)
    words = "take out the lines that are not, and keep the file as it was beside it"
    ledger.add_argument("--repair", action="store_true", help=words)

    network = command("network", "measure a recorded network again")
    network.add_argument("file", help="a network as JSON")
    network.add_argument("--dataset", help="another data set with images of the same shape")

    bench = command("bench", "how fast it is against plain PyTorch and simple code", plugins=False)
    words = "the headline ratios in under three minutes, the last line JSON; writes nothing"
    bench.add_argument("--quick", action="store_true", help=words)
    bench.add_argument("--only", metavar="PART", help="this part alone, such as training or agent")

    command("lab", "the notebooks in JupyterLab, the playground first")
    command("check", "format, lint, imports and types of the code", plugins=False)
    for name, words in (("test", "the tests"), ("python", "the laboratory's Python")):
        command(name, f"{words}; what follows is handed on", plugins=False).add_argument("words")
    return whole


def read(words: Sequence[str]) -> argparse.Namespace:
    """The command and its options; exits with one sentence for a slip."""
    words, whole = list(words), parser()
    commands = next(action.choices for action in whole._actions if action.choices)
    if words[:1] and words[0] in HANDED_ON:
        return argparse.Namespace(command=words[0], words=words[1:])
    # A command may stand behind its options; without one, the words are those of run.
    named = next((word for word in words if word in commands), None)
    if named:
        words.remove(named)
    elif {"-h", "--help"} & {*words}:
        words = []
        whole.parse_args(["--help"])
    options = whole.parse_args([named or "run", *words])
    if options.command == "run":
        _sort_words(options, whole)
    return options


def _sort_words(options: argparse.Namespace, whole: Parser) -> None:
    """Those of ``run``: a profile, or the fields of one run."""
    options.fields = [word for word in options.words if "=" in word]
    named = [word for word in options.words if "=" not in word]
    if named[1:]:
        whole.error(f"unrecognized arguments: {' '.join(named[1:])}")
    options.single = bool(options.fields) and not named
    options.profile = (named or [PROFILE])[0]


def profiles() -> list[str]:
    """The names of the profiles of this checkout. Their YAML is read by who can."""
    notebooks = Path(__file__).resolve().parent.parent / "notebooks"
    found = {path.stem for path in notebooks.glob("profiles/*.yaml")}
    for path in notebooks.glob("*.yaml"):
        found |= {*re.findall(r"^([\w-]+):", path.read_text(), re.MULTILINE)}
    return [PROFILE, "paper", *sorted(found - {PROFILE, "paper"})]


def main() -> None:
    options = read(sys.argv[1:])
    name = getattr(options, "profile", PROFILE)
    if name not in profiles():
        parser().error(f"unknown profile {name!r}, it can be {', '.join(profiles())}")


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:
        sys.exit(stop.code or HELPED)
