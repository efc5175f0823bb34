from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_reward.reports import plots
from image_reward.reports.document import Card, Cards, Column, Grid, Plot, Report
from image_reward.reports.printing import show
from image_reward.reports.render import write

HOSTILE = '<script>alert("1")</script> | ![x](http://evil.example/x.png) `c` *b* $x$'
PROMPT = "絵画、海と鳥 🐦 — «кот»"
COLUMNS = [Column("generator", "left"), Column("reward"), Column("interval", "center")]


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and the text of its table's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def drawn(label: str = "mean reward") -> Any:
    figure = plots.figure()
    axes = figure.subplots()
    plots.intervals(axes, ["one", PROMPT], [0.5, 1.0], [0.1, 0.7], [0.8, 1.4], reference=0.0)
    axes.set_xlabel(label)
    return figure


@pytest.fixture
def report() -> Report:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    return Report(
        HOSTILE,
        "Lead & all.",
        [
            "- Not a list, #1 < 2.",
            Grid(COLUMNS, [["a|b", "+0.1", "0 to 1"], [HOSTILE, "-0.2", "-"], [PROMPT, "+0.9", ""]], "Generators", "All.", frozenset([2])),
            Plot(drawn(), "Means", f'Two "dots": {HOSTILE}', "95 % intervals."),
            Plot(drawn(HOSTILE), "Again", "The same dots."),
            Cards([Card(picture, HOSTILE, ["rank 1", "reward +0.9"]), Card(picture, PROMPT)], "Images", "Best first."),
        ],
        {"prompt": PROMPT, "reward": 0.9, "unknown": None},
    )


@pytest.fixture
def written(report: Report, tmp_path: Path) -> Callable[[str], str]:
    def text(ending: str) -> str:
        write(report, tmp_path / "new" / f"report{ending}")
        return (tmp_path / "new" / f"report{ending}").read_text(encoding="utf-8")

    return text


def test_a_page_fetches_nothing_and_runs_nothing(written: Callable[[str], str]) -> None:
    text = written(".html")
    page = Page(text)
    assert not page.all("script", "link", "iframe", "object", "embed", "base")
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
    assert links
    assert all(link is not None and link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert page.text.count(HOSTILE) >= 4  # in title, table, plot and card, as it was given


def test_a_page_holds_every_block(written: Callable[[str], str]) -> None:
    page = Page(written(".html"))
    rows = [["generator", "reward", "interval"], ["a|b", "+0.1", "0 to 1"], [HOSTILE, "-0.2", "-"], [PROMPT, "+0.9", ""]]
    assert page.rows == rows
    assert [attributes.get("class") for attributes in page.all("tr")] == [None, None, None, "strong"]
    assert [attributes["class"] for attributes in page.all("td")] == ["right", "center"] * 3
    assert [attributes["alt"] for attributes in page.all("img")] == [HOSTILE, PROMPT]
    assert [attributes.get("class") for attributes in page.all("img")] == ["small", "small"]
    assert [(svg["role"], svg["aria-label"]) for svg in page.all("svg")] == [("img", f'Two "dots": {HOSTILE}'), ("img", "The same dots.")]
    for said in ("Lead & all.", "- Not a list, #1 < 2.", "95 % intervals.", "Best first.", "reward +0.9", "mean reward"):
        assert said in page.text


def test_a_page_opens_with_its_answer_and_a_list_of_contents_if_it_is_long(report: Report, tmp_path: Path) -> None:
    answered = replace(report, answer="One is best.")
    for name in ("a.html", "a.md"):
        write(answered, tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.index("One is best.") < text.index("Lead &amp; all.")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    titled = [f"#{a['id']}" for a in page.all("section")]
    assert [a["href"] for a in page.all("a")] == titled
    assert len(titled) == 4
    write(replace(report, blocks=report.blocks[:3]), tmp_path / "short.html")
    assert not Page((tmp_path / "short.html").read_text(encoding="utf-8")).all("nav", "a")


def test_figures_of_one_page_share_no_id(written: Callable[[str], str]) -> None:
    text = written(".html")
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert ids
    assert len(ids) == len(set(ids))
    assert used == set(ids)
    assert {str(name).rsplit("-", 1)[0] for name in ids} == {"part", "figure-3", "figure-4"}


def test_a_page_knows_both_schemes(written: Callable[[str], str]) -> None:
    text = written(".html")
    style = text[text.index("<style>") : text.index("</style>")]
    variables = set(re.findall(r"var\((--[a-z0-9-]+)", text))
    assert {"--series-1", "--ink", "--card", "--axis"} <= variables
    assert all(f"{name}:" in style for name in variables - {"--widest"})  # which each plot has of its own
    assert len(re.findall("--series-6: #", style)) == 2  # on light ground and on dark


def test_markdown_says_every_block_and_does_no_more(written: Callable[[str], str]) -> None:
    lines = written(".md").splitlines()
    hostile = r"&lt;script&gt;alert(\"1\")&lt;/script&gt; \| !\[x\](http://evil.example/x.png) \`c\` \*b\* \$x\$".replace('\\"', '"')
    assert lines[0] == f"# {hostile}"
    assert r"\- Not a list, #1 &lt; 2." in lines
    start = lines.index("## Generators") + 2
    assert lines[start : start + 5] == [
        "| generator | reward | interval |",
        "| :--- | ---: | :---: |",
        r"| a\|b | +0.1 | 0 to 1 |",
        f"| {hostile} | -0.2 | - |",
        f"| **{PROMPT}** | **+0.9** |  |",
    ]
    assert f'Two "dots": {hostile}' in lines
    assert "95 % intervals." in lines
    assert f"1. {hostile}: rank 1; reward +0.9" in lines
    assert f"2. {PROMPT}" in lines


def test_json_is_the_data(written: Callable[[str], str], report: Report) -> None:
    text = written(".json")
    assert json.loads(text) == report.data
    assert PROMPT in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_of_what_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match=r"data of 'Means' .*give None where there is no number"):
        write(Report("Means", "", [], {"mean": [value]}), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["report.txt", "report", "report.html.gz"])
def test_another_ending_is_refused(name: str, report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}: a report is written as \.html, \.md or \.json"):
        write(report, tmp_path / name)


def test_the_same_report_gives_the_same_files(written: Callable[[str], str]) -> None:
    for ending in (".html", ".md", ".json"):
        assert written(ending) == written(ending)


def test_a_terminal_shows_every_block(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report)
    text = capsys.readouterr().out
    table = [line.split() for line in text.splitlines() if line.startswith(" a|b")]
    assert table == [["a|b", "+0.1", "0", "to", "1"]]
    for said in (HOSTILE, PROMPT, "Lead & all.", "- Not a list, #1 < 2.", "Generators", "Means", 'Two "dots"', "95 % intervals.", "All."):
        assert said in text
    assert f"1. {HOSTILE}: rank 1; reward +0.9" in " ".join(text.split())


def test_a_table_may_have_no_title_and_no_rows(tmp_path: Path) -> None:
    write(Report("t", "", [Grid(COLUMNS, [])]), tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.rows == [["generator", "reward", "interval"]]
    assert not page.all("h2")
    write(Report("t", "", [Grid(COLUMNS, [])]), tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text() == "# t\n\n| generator | reward | interval |\n| :--- | ---: | :---: |\n"


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'image-reward\[report\]'"):
        plots.figure()
