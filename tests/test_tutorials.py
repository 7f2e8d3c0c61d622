"""The commands of docs/tutorials run as they are printed, in order, in a fresh copy of the project.

How a page is read:

- a block ```bash is one command. The comment `<!-- ci: ... -->` above it holds overrides that make it small; they take
  the place of those with the same key, or are appended. Readers do not see them.
- a block ```text holds lines that the command before it prints. Numbers and identities may be others, `...` stands for
  anything, and spaces for any blanks.
- a block ```python is a file, whose name is in its first line: `# predict.py`.
- an identity (12 or 32 hexadecimal digits, or the first 8 of them) that a command names is the one that was printed
  in its place.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dxc.config.compose import PROJECT_ROOT

PAGES = PROJECT_ROOT / "docs" / "tutorials"
PROJECT = (
    "conf",
    "dxc",
    "hydra_plugins",
    "prepare.py",
    "train.py",
    "search.py",
    "analyze.py",
    "map.py",
    "calibrate.py",
)
BUSY = ("on a machine that does nothing else", "this machine is too busy")
"""calibrate.py says one of these where its times differ too much, and makes no predictor. Other tests run beside this
one."""
BLOCK = re.compile(r"(?:<!-- ci:(?P<small>.*?)-->\n\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
TOKEN = re.compile(
    r"(?P<identity>\b(?:[0-9a-f]{32}|[0-9a-f]{12})\b)|(?P<number>\d[\d,]*(?:\.\d+)?)|(?P<gap>\.\.\.)|(?P<blank>\s+)"
)


class Step(NamedTuple):
    """A block of a page."""

    kind: str
    body: str
    small: str
    """Overrides that make a command small."""


def steps_of(page: Path) -> list[Step]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = [Step(each["kind"], each["body"], (each["small"] or "").strip()) for each in BLOCK.finditer(text)]
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence is not closed, or indented"
    assert {each.kind for each in found} <= {"bash", "text", "python"}, (
        f"{page.name}: a fence of another kind"
    )
    assert text.count("<!-- ci:") == sum(bool(each.small) for each in found), (
        f"{page.name}: a comment without its block"
    )
    return found


def pattern_of(line: str) -> tuple[re.Pattern[str], list[str]]:
    """What a quoted line may look like in a small run, and the identities that it names, in order."""
    pattern, end, identities = "", 0, []
    for token in TOKEN.finditer(line.strip()):
        pattern += re.escape(line.strip()[end : token.start()])
        end = token.end()
        if token.lastgroup == "identity":
            identities.append(token.group())
            pattern += f"([0-9a-f]{{{len(token.group())}}})"
        else:
            pattern += {"number": r"[\d,]+(?:\.\d+)?", "gap": ".*", "blank": r"\s+"}[str(token.lastgroup)]
    return re.compile(pattern + re.escape(line.strip()[end:])), identities


class Journey:
    """A fresh copy of the project in which the blocks of a page are followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in PROJECT:
            source, target = PROJECT_ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        self.identities: dict[str, str] = {}
        self.printed = ""
        self.too_busy = False
        """The command before could not measure; nothing is compared with what it printed."""

    def follow(self, step: Step) -> None:
        {"bash": self._run, "text": self._compare, "python": self._write}[step.kind](step)

    def _run(self, step: Step) -> None:
        lines = step.body.strip().splitlines()
        assert all(line.endswith("\\") for line in lines[:-1]), (
            f"more than one command in a block:\n{step.body}"
        )
        command = step.body.strip().replace("\\\n", " ")
        for quoted, actual in self.identities.items():
            command = command.replace(quoted, actual).replace(quoted[:8], actual[:8])
        words = shlex.split(command)
        for override in shlex.split(step.small):
            key = override.split("=")[0] + "="
            words = [word for word in words if not word.startswith(key)] + [override]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        self.printed = done.stdout
        self.too_busy = "calibrate.py" in words and any(each in self.printed for each in BUSY)
        if self.too_busy:
            warnings.warn(f"the machine is too busy: {self.printed.splitlines()[-1]}", stacklevel=2)
            assert done.returncode == 2, self.printed  # an error of dxc, and no other
            return
        assert done.returncode == 0, f"{shlex.join(words)}\n{self.printed}"
        assert "Traceback" not in self.printed

    def _compare(self, step: Step) -> None:
        if self.too_busy:
            return
        for line in step.body.splitlines():
            pattern, identities = pattern_of(line)
            found = pattern.search(self.printed)
            assert found, f"nowhere printed: {line}\nin:\n{self.printed}"
            self.identities |= dict(zip(identities, found.groups(), strict=True))

    def _write(self, step: Step) -> None:
        name = step.body.splitlines()[0].removeprefix("# ")
        assert re.fullmatch(r"\w+\.py", name) and name not in PROJECT
        (self.folder / name).write_text(step.body, encoding="utf-8")


def survey(folder: Path) -> None:
    """Rasters, points and lines of a small watershed, as GeoTIFFs and GeoPackages."""
    from dxc.synthetic.source import REGIONS, make_region

    made = make_region(REGIONS[0], folder / "survey", crossings=12, seed=1)
    for path, name in (
        (made.dem, "dem.tif"),
        (made.photo, "naip.tif"),
        (made.crossings, "points.gpkg"),
        (made.roads, "roads.gpkg"),
        (made.streams, "streams.gpkg"),
    ):
        path.rename(folder / name)


def network_from_elsewhere(folder: Path) -> None:
    """model.onnx: a small network that dxc did not export."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"]),
    ]
    shapes = {"x": [1, 3, 100, 100], "y": [1, 2]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph(
        nodes, "small", [x], [y], [weights("w", 16, 3, 3, 3), weights("v", 16, 2), weights("b", 2)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")


def nothing(folder: Path) -> None:
    """A reader who has no files."""


READERS: dict[str, Callable[[Path], None]] = {
    "own-rasters.md": survey,
    "budget.md": network_from_elsewhere,  # the predictor that it makes is not relied on: the machine may be busy
    "published-studies.md": nothing,
}
"""What the reader of a page has before the first command."""


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_command_of_a_tutorial_runs_and_prints_what_the_page_quotes(name: str, tmp_path: Path) -> None:
    journey = Journey(tmp_path)
    READERS[name](tmp_path)
    for step in steps_of(PAGES / name):
        journey.follow(step)


def test_every_page_has_its_reader_and_quotes_what_is_printed() -> None:
    assert {path.name for path in PAGES.glob("*.md")} == READERS.keys()
    for name in READERS:
        kinds = [step.kind for step in steps_of(PAGES / name)]
        assert "bash" in kinds and "text" in kinds


@pytest.mark.parametrize(
    ("quoted", "printed", "meets"),
    [
        ("accuracy 0.8076 fraction", " accuracy     0.4  fraction ", True),
        ("NE: 60 chips", "NE: 1,200 chips", True),
        ("NE: 60 chips", "NE: no chips", False),
        ("note: ... (one thread)", "note: anything (one thread)", True),
        ("note: ... (one thread)", "note: anything (two threads)", False),
        ("trial 3519c8f7b6e0", "trial f3f21b364a8e", True),
        ("trial 3519c8f7b6e0", "trial 12", False),
    ],
)
def test_a_quoted_line_stands_for_its_kind(quoted: str, printed: str, meets: bool) -> None:
    pattern, _ = pattern_of(quoted)
    assert bool(pattern.search(printed)) == meets
