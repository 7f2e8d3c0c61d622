"""Names that nobody here chose, in each format that dxc writes: a parser of that format reads what we show of them."""

from __future__ import annotations

import csv
import io
import json
import logging
import logging.config
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from markdown_it import MarkdownIt
from omegaconf import OmegaConf
from rich.cells import cell_len
from rich.console import Console

from dxc import text
from dxc.config.compose import PROJECT_ROOT
from dxc.errors import DxcError, exit_cleanly
from dxc.report import tables
from dxc.report.terminal import Column, print_line, print_table

NAMES = {  # a name -> how it is shown
    "plain résnet ± 3 → 漢字": "plain résnet ± 3 → 漢字",
    "[bold]loud[/bold][/nope]": "[bold]loud[/bold][/nope]",
    "[abcdef123456]": "[abcdef123456]",
    "a :smile: b": "a :smile: b",
    "\x1b[2J\x1b[31mred": r"\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "c1\x9b31m\x90": r"c1\x9b31m\x90",
    "over\rwritten\b\x7f": r"over\rwritten\x08\x7f",
    "two\nlines\tand a tab": r"two\nlines\tand a tab",
    "\u202etxt.exe\u2066\u200b": r"\u202etxt.exe\u2066\u200b",
    "line\u2028end\u0085": r"line\u2028end\x85",
    "lone \udc80": r"lone \udc80",
    "tag \U000e0041": r"tag \U000e0041",
    '=HYPERLINK("http://x","y")': '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0": "+1+cmd|' /C calc'!A0",
    "-2+3": "-2+3",
    "@SUM(A1)": "@SUM(A1)",
    "\t=1": r"\t=1",
    "\r=1": r"\r=1",
    " =1": " =1",
    "<img src=x onerror=alert(1)>&amp;": "<img src=x onerror=alert(1)>&amp;",
    "</script><!--<script>'\"": "</script><!--<script>'\"",
    "[link](http://x) ![i](http://x)": "[link](http://x) ![i](http://x)",
    "http://a.b www.a.b a_b _c_ **d** ~~e~~": "http://a.b www.a.b a_b _c_ **d** ~~e~~",
    "a|b \\| `c|d` \\": "a|b \\| `c|d` \\",
    r"$\frac{1}{$ x": r"$\frac{1}{$ x",
    "100% & #1 {a}_b^c~d": "100% & #1 {a}_b^c~d",
    "_hidden": "_hidden",
}
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
"""What must reach no terminal."""


@pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=[ascii(name) for name in NAMES])
def test_every_character_shows(name: str, shown: str) -> None:
    assert text.visible(name) == text.for_terminal(name) == shown
    assert text.visible(shown) == shown  # twice is once
    assert not FORBIDDEN.search(shown)


def test_a_message_keeps_its_lines() -> None:
    assert text.for_terminal("a\n\tb\x1b\r\nc", lines=True) == "a\n    b\\x1b\\r\nc"


def test_tables_of_the_terminal() -> None:
    """Markup, emoji codes and control characters are text, and the columns stay in line."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None, width=200)
    columns = [Column("[/heading]", list(NAMES), words=True), Column("n", ["|"] * len(NAMES))]
    print_table(console, columns, title="[/title]\x1b[2J")
    title, *rows = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).splitlines()  # rich's own bold
    assert title.strip() == r"[/title]\x1b[2J"
    ends = {cell_len(row.rstrip()) for row in rows if row.rstrip().endswith("|")}
    assert len(ends) == 1
    printed = "\n".join(rows)
    assert "[/heading]" in printed and all(shown in printed for shown in NAMES.values())
    assert not FORBIDDEN.search(printed)


def test_lines_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        print_line(Console(), f"choice: {name}".replace("\n", r"\n"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(NAMES)] == [f"choice: {shown}" for shown in NAMES.values()]


def test_errors_reach_the_terminal_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_cleanly():
        raise DxcError("no study '\x1b[2J\u202e\x9b'; there are:\n  a\rb")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "\nerror: no study '\\x1b[2J\\u202e\\x9b'; there are:\n  a\\rb\n"


@pytest.mark.parametrize("name", ["train", "search", "prepare", "calibrate", "map", "analysis/analyze"])
def test_log_lines_reach_the_terminal_as_text(name: str) -> None:
    """The formatters that Hydra sets up from conf/, for its own messages too where a search writes through them."""
    folder, _, script = name.rpartition("/")
    with initialize_config_dir(str(PROJECT_ROOT / "conf" / folder), version_base="1.3"):
        hydra = compose(script, return_hydra_config=True).hydra
    record = logging.LogRecord(
        "dxc", logging.WARNING, "f.py", 1, "chip %s:\nbad", ("a\x1b[2J\rb\u202e",), None
    )
    for kind in ("job_logging", *(["hydra_logging"] if script in ("train", "search") else [])):
        told = OmegaConf.to_container(hydra[kind], resolve=False)
        made = logging.config.DictConfigurator(told).configure_formatter(dict(told["formatters"]["simple"]))
        assert made.format(record).endswith("chip a\\x1b[2J\\rb\\u202e:\nbad")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"design": list(NAMES), "=n": "-0.5 ± 0.1", "value": -1.5}, dtype=object)


def test_csv(table: pd.DataFrame) -> None:
    heading, *rows = csv.reader(io.StringIO(tables.comma_separated(table), newline=""))
    assert heading == ["design", "'=n", "value"]
    for row, shown in zip(rows, NAMES.values(), strict=True):
        formula = shown.lstrip()[0] in "=+-@"
        assert row == [f"'{shown}" if formula else shown, "-0.5 ± 0.1", "-1.5"]
        assert row[0][0] not in "=+-@\t\r"
    assert sum(row[0].startswith("'") for row in rows) == 5


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("-0.5", "-0.5"), ("+3", "+3"), ("-1,234.5", "-1,234.5"), ("-1e-05", "-1e-05"), ("-", "-"),
        ("-0.12 ± 0.03", "-0.12 ± 0.03"), ("-12.5 %", "-12.5 %"), ("-.5", "-.5"),
        ("-1-1", "'-1-1"), ("-A1", "'-A1"), ("--1", "'--1"), ("-1 ", "'-1 "), ("＝1", "'＝1"), ("=", "'="),
    ],
)  # fmt: skip
def test_a_negative_number_stays_a_number(cell: str, written: str) -> None:
    assert text.for_csv(cell) == written


class Cells(HTMLParser):
    """The tags of a document and the text of its cells and paragraphs."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs in ([], [("class", "number")])
        self.tags.add(tag)
        if tag in ("td", "th", "p"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data.strip("\n")


def test_markdown(table: pd.DataFrame) -> None:
    written = tables.markdown(table, note="<b>[x](http://y)</b>\n\n# z")
    found = Cells(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(written))
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert found.texts[3:-1:3] == [shown.strip() for shown in NAMES.values()]
    assert found.texts[-1] == r"<b>[x](http://y)</b>\n\n# z"
    assert (
        text.for_markdown("http://a www.b latency_ms") == r"http\://a www\.b latency_ms"
    )  # GitHub's own links


def test_html(table: pd.DataFrame) -> None:
    found = Cells(tables.html(table))
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.texts[3::3] == list(NAMES.values())
    assert text.for_html("\"'") == "&quot;&#x27;"  # in attributes


def test_data_of_a_script() -> None:
    written = text.for_script({"names": list(NAMES)})
    assert json.loads(written)["names"] == list(NAMES)
    assert written.isascii() and "<" not in written
    with pytest.raises(ValueError, match="not JSON compliant"):
        text.for_script({"x": float("nan")})


def test_latex(table: pd.DataFrame) -> None:
    lines = tables.latex(table, note="% \n\\input{x}").splitlines()
    assert lines[:4] == [r"% % \n\input{x}", r"\begin{tabular}{lll}", r"\toprule", r"design & =n & value \\"]
    assert lines[4] == r"\midrule" and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = dict(zip(NAMES, lines[5:-2], strict=True))
    for row in rows.values():
        assert row.endswith(r" & -0.5 $\pm$ 0.1 & -1.5 \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2
        assert not row.startswith(("[", "*"))  # it would be an argument of the rule or row before it
    assert rows["100% & #1 {a}_b^c~d"].startswith(
        r"100\% \& \#1 \{a\}\_b\textasciicircum{}c\textasciitilde{}d &"
    )
    assert rows[r"$\frac{1}{$ x"].startswith(r"\$\textbackslash{}frac\{1\}\{\$ x &")
    assert rows["[abcdef123456]"].startswith("{[}abcdef123456] &")


def test_figures(tmp_path: Path) -> None:
    """Formulas that are none and characters of no picture are drawn as text, and the SVG is XML."""
    from xml.etree import ElementTree

    import matplotlib
    from matplotlib.figure import Figure

    from dxc.report.figures import STYLE, save

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        for name in NAMES:
            axes.plot([0, 1], [0, 1], label=text.for_figure(name))
        axes.set_xticks([0, 1], [text.for_figure(name) for name in (r"$\frac{1}{$ x", "\x1b$")])
        legend = figure.legend()
        drawn = [each.get_text().lstrip() for each in legend.get_texts()]
        paths = save(figure, tmp_path, "names")
    assert drawn == [shown.lstrip() for shown in NAMES.values()]
    ElementTree.parse(paths[1])
    assert not FORBIDDEN.search(paths[1].read_text())
