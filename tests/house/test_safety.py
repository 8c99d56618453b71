"""What a user can be handed (a mask, a policy, a checkpoint, a network, a ledger, a profile, a data
set) is data: nothing in it runs.

First the text of the project is searched for calls that could run what a file says; then hostile
files are loaded.
"""

import ast
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pandas as pd
import PIL.EpsImagePlugin
import pytest
import torch
import torchvision
from PIL import Image

from panning_core import ROOT, data, masks, models
from panning_core.agent import learning, policies
from panning_core.analysis import networks
from panning_core.errors import UserError
from panning_core.experiments import profiles, studies
from panning_core.experiments.ledger import Ledger
from tests.checkout import PARAMETERS, Checkout

# --- the text -------------------------------------------------------------------------------------

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "code",
    "runpy",
    "telnetlib",
    "xmlrpc",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "joblib.load",
    "pandas.read_pickle",
    "numpy.load",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "subprocess.getoutput",
    "stable_baselines3.TD3.load",
    "importlib.import_module",
    "shutil.unpack_archive",
    "urllib.request.urlopen",
    "urllib.request.urlretrieve",
}
METHODS = {"load_replay_buffer", "extractall", "read_pickle"}
SAFE = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
}  #: with this argument, written out
#: file -> what stands there all the same, and why
ALLOWED = {
    # Its loader is yaml's SafeLoader, which makes plain values only, and refuses keys that are
    # there twice.
    "panning_core/experiments/profiles.py": {"yaml.load"},
    # A kind of run is looked up in the table of kinds alone, which is code.
    "panning_core/runs/base.py": {"importlib.import_module"},
    # One name, written out: the table of methods stands above the core and is loaded when it is
    # asked for.
    "panning_core/pruning.py": {"importlib.import_module"},
    # No file is read: what the starting process itself registers goes to its own workers, as
    # joblib's tasks do.
    "panning_core/plugins/__init__.py": {"cloudpickle", "importlib.import_module", "pickle"},
}


def risks(text):
    """(line, name) of everything in a Python text that could run what it reads."""
    tree, known = ast.parse(text), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                for alias in node.names
            }
            yield from (
                (node.lineno, alias.name)
                for alias in node.names
                if alias.name.split(".")[0] in MODULES
            )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
            yield from (
                (node.lineno, node.module) for _ in range(node.module.split(".")[0] in MODULES)
            )

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(
            node.ctx, ast.Load
        ):  # a name that is passed on is as good as a call
            name, given = (
                dotted(node),
                (
                    {
                        each.arg: getattr(each.value, "value", None)
                        for each in called[id(node)].keywords
                    }
                    if id(node) in called
                    else {}
                ),
            )
            argument, value = SAFE.get(name, (None, None))
            if (name in CALLS or name.split(".")[-1] in METHODS) and (
                argument is None or given.get(argument) is not value
            ):
                yield node.lineno, name
            if given.get("shell") or given.get("allow_pickle"):
                yield node.lineno, f"{name} with shell or allow_pickle"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "eval('1')",
        "x = [exec]",
        "__import__('os')",
        "import os\nos.system('ls')",
        "from os import system as s\ns('ls')",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml as y\ny.unsafe_load(text)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\nread = torch.load",
        "import pandas as pd\npd.read_pickle(f)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from joblib import load\nload(f)",
        "archive.extractall()",
        "model.load_replay_buffer(f)",
        "from numpy.lib import npyio\nnpyio.NpzFile(f, allow_pickle=True)",
    ],
)
def test_the_audit_finds(text):
    assert list(risks(text))


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import re\nre.compile('a')",
        "model.eval()",
        "import yaml\nyaml.safe_load(text)",
        "import json\njson.loads(text)",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
    ],
)
def test_the_audit_leaves_in_peace(text):
    assert not list(risks(text))


def code(path):
    """The lines of a notebook's code cells."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield from "".join(cell["source"]).splitlines()


def texts():
    """Name -> text of every Python file and notebook of the project; of a notebook its code
    cells.
    """
    for path in [
        *(ROOT / "panning_core").rglob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "notebooks").rglob("*.py"),
    ]:
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        yield (
            str(path.relative_to(ROOT)),
            "\n".join(line for line in code(path) if not line.lstrip().startswith(("%", "!"))),
        )


def test_nothing_in_the_project_runs_what_a_file_says():
    found = {name: {what for _, what in risks(text)} for name, text in texts()}
    assert len(found) > 40 and {name: what for name, what in found.items() if what} == ALLOWED


def test_no_notebook_starts_a_shell():
    lines = [line for path in (ROOT / "notebooks").glob("*.ipynb") for line in code(path)]
    assert len(lines) > 300 and not [
        line
        for line in lines
        if line.lstrip().startswith(("!", "%%bash", "%%sh", "%system", "%sx"))
    ]


# --- hostile files --------------------------------------------------------------------------------


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    """A place that must stay empty."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


def member(name, content):
    """An archive of one member, written byte for byte."""

    def write(path, canary):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content(canary) if callable(content) else content)

    return write


def header(shape, kind="|b1"):
    """What NumPy writes before an array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def liar(path, canary):
    """An archive whose directory says that its member has 4 GB."""
    member("fc1.weight.npy", header((3,)) + b"\1\1\1")(path, canary)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2") + 24  # its uncompressed size
    content[place : place + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)


ARCHIVES = {
    "a pickle": lambda path, canary: path.write_bytes(pickle.dumps(Harm(canary))),
    "a pickle in PyTorch's way": lambda path, canary: torch.save(Harm(canary), path),
    "an array of objects": lambda path, canary: np.savez(
        open(path, "wb"), **{"fc1.weight": np.array([Harm(canary)], dtype=object)}
    ),
    "a card of objects": lambda path, canary: np.savez(
        open(path, "wb"), card=np.array(Harm(canary), dtype=object)
    ),
    "a pickle for an array": member("fc1.weight.npy", lambda canary: pickle.dumps(Harm(canary))),
    "a pickle under another name": member("card", lambda canary: pickle.dumps(Harm(canary))),
    "an expression for a header": member(
        "fc1.weight.npy",
        lambda canary: (
            b"\x93NUMPY\1\0"
            + struct.pack("<H", 60)
            + f"__import__('os').mkdir({str(canary)[-20:]!r})".encode().ljust(60)
        ),
    ),
    "a path above": member("../../canary.npy", header((3,)) + b"\1\1\1"),
    "an absolute path": member("/tmp/canary.npy", header((3,)) + b"\1\1\1"),
    "a huge claim": member("fc1.weight.npy", header((2**40,))),
    "a huge claim of many sides": member("fc1.weight.npy", header((2**20, 2**20, 2**20))),
    "a lie about its size": liar,
    "a bomb": member("fc1.weight.npy", lambda canary: header((3 * 10**7,)) + bytes(3 * 10**7)),
}


@pytest.mark.parametrize("kind", ["mask", "policy"])
@pytest.mark.parametrize("attack", ARCHIVES)
def test_a_hostile_archive_is_refused_and_nothing_in_it_runs(
    monkeypatch, tmp_path, canary, kind, attack
):
    """Nor is room made for what it claims: a mask may have a gigabyte and a policy 50 MB, for the
    bomb both have ten.
    """
    monkeypatch.setattr(masks, "LARGEST", 10**7) if attack == "a bomb" else None
    monkeypatch.setattr(policies, "LARGEST", 10**7) if attack == "a bomb" else None
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    path = folder / "given.npz"
    ARCHIVES[attack](path, canary)
    model = models.build("lenet300", (1, 8, 8), 10, 0)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="given.npz|of another network"):
            masks.load(path, model) if kind == "mask" else policies.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["given.npz", "some", "where"]


@pytest.mark.parametrize(
    "attack",
    [
        "a pickle",
        "an array of objects",
        "a card of objects",
        "a pickle for an array",
        "a pickle under another name",
    ],
)
def test_where_pickles_are_read_these_would_run(tmp_path, attack):
    ARCHIVES[attack](tmp_path / "given.npz", tmp_path / "canary")
    if attack == "a pickle":
        pickle.loads((tmp_path / "given.npz").read_bytes())
    elif "for an" in attack or "under" in attack:
        with zipfile.ZipFile(tmp_path / "given.npz") as archive:
            pickle.loads(archive.read(archive.namelist()[0]))
    else:
        dict(np.load(tmp_path / "given.npz", allow_pickle=True))
    assert (tmp_path / "canary").exists()


TRAINING = learning.Training(
    "lenet300/digits", steps=30, rounds=2, per_class=2, pool=10, random_steps=20, width=8
)


@pytest.mark.parametrize(
    "attack",
    [
        lambda path, canary: path.write_bytes(pickle.dumps(Harm(canary))),
        lambda path, canary: torch.save(Harm(canary), path),
        lambda path, canary: torch.save({"policy": {}, "told": Harm(canary)}, path),
        lambda path, canary: torch.save({"policy": torch.nn.Linear(2, 2)}, path),
        lambda path, canary: np.savez(open(path, "wb"), card=np.array(Harm(canary), dtype=object)),
        lambda path, canary: member("archive/data.pkl", pickle.dumps(Harm(canary)))(path, canary),
    ],
    ids=[
        "a pickle",
        "an object",
        "an object inside",
        "a module",
        "an array of objects",
        "a pickle in an archive",
    ],
)
def test_a_hostile_checkpoint_is_refused_and_nothing_in_it_runs(tmp_path, canary, attack):
    attack(learning.checkpoint(TRAINING, tmp_path), canary)
    with pytest.raises(
        UserError, match=r"checkpoint is not a checkpoint of this training .*; delete it"
    ):
        learning.learn(TRAINING, tmp_path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    made = Checkout(tmp_path / "checkout")
    made.notebook("01_tiny", PARAMETERS)
    monkeypatch.setattr(profiles, "ROOT", made.root)
    return made


def bomb(depth, width=10):
    """YAML of a few lines that names width^depth values."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)
    ]
    return "\n".join(lines) + f"\n01_tiny: {{grid: *a{depth - 1}}}"


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [CANARY]",
        "01_tiny: !!python/object/apply:os.mkdir [CANARY]",
        "01_tiny: {grid: [!!python/object/new:os.mkdir [CANARY]]}",
        "01_tiny: !!python/name:os.system {}",
        "01_tiny: {grid: !!python/module:os {}}",
        "01_tiny: {parameters: {a: !!python/tuple [1]}}",
        "01_tiny: {? !!python/object/apply:os.mkdir [CANARY] : 1}",
        "01_tiny: &a {grid: [{dataset: digits, model: lenet300, seed: *a}]}",
        "01_tiny: {grid: &a [*a]}",
        bomb(12),
        "[" * 1000,
        "01_tiny: {grid: [{dataset: ../../digits, model: lenet300}]}",
        (
            "01_tiny: {grid: [{dataset: digits, model: lenet300, method: panning-agent, policy:"
            " ../x.npz}]}"
        ),
        "01_tiny: {grid: [{dataset: digits, model: lenet300, seed: "
        + str(list(range(2000)))
        + ", per_class: "
        + str(list(range(2000)))
        + "}]}",
    ],
    ids=lambda text: text[:40],
)
def test_a_hostile_profile_is_refused_and_nothing_in_it_runs(checkout, canary, text):
    checkout.profile(text.replace("CANARY", str(canary)))
    with pytest.raises(UserError) as error:
        studies.runs("01_tiny", "tiny")
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    "text",
    [
        '{"__reduce__": ["os.mkdir", ["CANARY"]]}',
        '{"py/object": "os.mkdir"}',
        "{\"model\": \"__import__('os').mkdir('CANARY')\"}",
        "[" * 100_000,
        '{"model": ' + "9" * 5000 + "}",
        '{"model": "lenet300", "input_shape": [1, 30000, 30000], "classes": 10}',
        '{"model": "lenet300", "input_shape": [1, 8, 8], "classes": 1000000000}',
        '{"model": "<script>", "input_shape": [1, 8, 8], "classes": 10}',
    ],
    ids=lambda text: text[:40],
)
def test_a_hostile_network_is_refused_and_nothing_in_it_runs(tmp_path, canary, text):
    (tmp_path / "network.json").write_text(text.replace("CANARY", str(canary)))
    with pytest.raises(UserError):
        networks.rebuild(networks.load(tmp_path / "network.json"))


def test_a_network_names_no_file(tmp_path, monkeypatch):
    """Its data set is looked up among those that are there, and not on the disk."""
    card = json.loads((ROOT / "results/paper/06_gumbel_softmax/network.json").read_text())
    monkeypatch.setenv("PANNING_DATA", str(tmp_path / "data"))
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="unknown data set '../'"):
        networks.evaluate({**card, "dataset": "../"})


@pytest.mark.parametrize(
    "line",
    [
        lambda canary: pickle.dumps(Harm(canary)) + b"\n",
        lambda canary: b'{"key": "a", "run": {}, "metrics": ' + b"[" * 100_000 + b"\n",
        lambda canary: b'{"key": "a", "run": {}, "metrics": {"x": NaN}}\n',
        lambda canary: b'{"key": "a", "run": {}, "metrics": "<script>"}\n',
        lambda canary: b'{"key": "a", "run": {}, "metrics": ' + b"9" * 5000 + b"}\n",
    ],
    ids=["a pickle", "deep", "NaN", "markup", "a long number"],
)
def test_a_hostile_ledger_is_refused_and_nothing_in_it_runs(tmp_path, canary, line):
    (tmp_path / "runs.jsonl").write_bytes(
        line(canary) + b'{"key": "b", "run": {}, "metrics": {}}\n'
    )
    for read in (
        Ledger(tmp_path / "runs.jsonl").rows,
        lambda: Ledger(tmp_path / "mine.jsonl").merge(tmp_path / "runs.jsonl"),
    ):
        with pytest.raises(UserError, match=r"runs.jsonl, line \d: not a run"):
            read()
    assert not (tmp_path / "mine.jsonl").exists() or not (tmp_path / "mine.jsonl").read_bytes()


def encoded(kind, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


def large(width):
    """A PNG that claims so many pixels a side, and has none."""
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">II", width, width)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    "image",
    [
        lambda canary: pickle.dumps(Harm(canary)),
        lambda canary: encoded("EPS"),
        lambda canary: large(60_000),
        lambda canary: encoded("PDF"),
    ],
    ids=["a pickle", "EPS", "a huge claim", "PDF"],
)
def test_a_hostile_data_set_is_refused_and_nothing_in_it_runs(monkeypatch, tmp_path, canary, image):
    """For EPS Pillow would start Ghostscript, which runs what the image says."""
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: canary.mkdir())
    monkeypatch.setenv("PANNING_DATA", str(tmp_path))
    (tmp_path / "given").mkdir()
    for part in ("train", "test"):
        pd.DataFrame(
            {"image": [{"bytes": image(canary), "path": "../../x.png"}] * 2, "label": [0, 1]}
        ).to_parquet(tmp_path / "given" / f"{part}.parquet")
    with pytest.raises(UserError, match="train.parquet is missing or damaged"):
        data.load("given")


# --- downloads ------------------------------------------------------------------------------------


def test_what_was_downloaded_is_used_only_with_the_right_checksum(monkeypatch, tmp_path):
    """A mirror that serves other files, whole and well-formed: torchvision knows the MD5 sum of
    every file it downloads.
    """
    (tmp_path / "mirror").mkdir()
    for part, n in {"train": 1000, "t10k": 500}.items():
        for name, content in (
            (f"{part}-images-idx3-ubyte", struct.pack(">IIII", 2051, n, 28, 28) + bytes(n * 784)),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 2049, n) + bytes(n)),
        ):
            (tmp_path / "mirror" / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(
        torchvision.datasets.utils,
        "_urlretrieve",
        lambda url, target, **_: shutil.copy(tmp_path / "mirror" / url.split("/")[-1], target),
    )
    monkeypatch.setenv("PANNING_DATA", str(tmp_path / "data"))
    with pytest.raises(
        UserError,
        match=(
            r"MNIST is missing or damaged .* could not be downloaded \(.* got: File not found or"
            r" corrupted"
        ),
    ):
        data.load("mnist")
    monkeypatch.setattr(
        torchvision.datasets.MNIST,
        "resources",
        [(name, None) for name, _ in torchvision.datasets.MNIST.resources],
    )
    assert len(data.load("mnist").test) == 500  # without the sums it would have been taken
    data.load.cache_clear()


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_download_that_fails_leaves_no_empty_folders(name, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fail)
    (tmp_path / "there").mkdir()
    for folder in ("there", "not there"):
        monkeypatch.setenv("PANNING_DATA", str(tmp_path / folder))
        with pytest.raises(UserError, match="could not be downloaded"):
            data.load(name)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    "cls, folder", [("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python")]
)
def test_the_pickles_of_cifar_are_read_only_with_the_right_checksum(
    monkeypatch, tmp_path, canary, cls, folder
):
    made = getattr(torchvision.datasets, cls)
    monkeypatch.setattr(made, "download", lambda self: None)
    monkeypatch.setenv("PANNING_DATA", str(tmp_path))
    (tmp_path / folder).mkdir()
    for name in [name for name, _ in [*made.train_list, *made.test_list]] + [made.meta["filename"]]:
        (tmp_path / folder / name).write_bytes(pickle.dumps(Harm(canary)))
    with pytest.raises(UserError, match=f"{cls} is missing or damaged"):
        data.load(cls.lower())


def test_every_download_has_a_checksum():
    sets = torchvision.datasets
    sums = [md5 for made in (sets.MNIST, sets.FashionMNIST) for _, md5 in made.resources]
    for made in (sets.CIFAR10, sets.CIFAR100):
        sums += [
            made.tgz_md5,
            made.meta["md5"],
            *(md5 for _, md5 in [*made.train_list, *made.test_list]),
        ]
    assert len(sums) > 15 and all(isinstance(each, str) and len(each) == 32 for each in sums)
