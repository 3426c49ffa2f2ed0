from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from synaptome.report import write_report
from synaptome.report.citations import BIBTEX
from synaptome.report.drawing import page_svg
from synaptome.training.run import read_run

VOID = {"meta", "link", "img", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order; collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.attributes += [(name, key, value) for key, value in attributes]
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.attributes += [(name, key, value) for key, value in attributes]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def values(self, key):
        return [value for _, found, value in self.attributes if found == key]


@pytest.fixture
def report(tmp_path):
    def write(*runs):
        return write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def comparison(finished):
    return [finished(f"{failure}-{seed}", seed, failure) for failure in (0.0, 0.5) for seed in range(3)]


def test_the_page_is_whole_and_says_the_essentials(report, comparison):
    text = " ".join(Page(report(*comparison)).text)
    assert "Highest mean test accuracy: 91.50 ± 0.17 % (failure=0.0)" in text
    assert "What they share (3)" in text
    assert "3.11.2" in text
    for key in ("synaptome", "wan2013", "mianjy2019", "alpaydin1998"):
        assert BIBTEX[key] in text
    assert "lecun1998" not in text


def test_a_single_run_and_a_single_group_have_a_page(report, comparison):
    assert "Test accuracy 91.67 %, with 1,210 parameters" in " ".join(Page(report(comparison[0])).text)
    assert "over 3 seeds" in " ".join(Page(report(*comparison[:3])).text)


def test_nothing_is_loaded_from_elsewhere(report, comparison):
    html = report(*comparison)
    page = Page(html)
    for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
        for value in page.values(key):
            assert value.startswith(("#", "data:,", "report-data/"))
    bibtex = html[html.index("<pre") : html.index("</pre>")]
    assert "://" not in html.replace(bibtex, "")
    assert "//" not in html[html.index("<style") : html.index("</style>")]
    assert "url(" not in html.replace("url(#", "")
    assert "<script" not in html


def test_every_drawing_is_xml_and_ids_are_unique(report, comparison):
    html = report(*comparison)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert sum('role="img"' in drawing for drawing in drawings) == 5  # a loss and an accuracy, each split by itself
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    page = Page(html)
    ids = page.values("id")
    assert ids
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href") if value.startswith("#")} <= set(ids)


def test_colours_are_the_pages_own(report, comparison):
    html = report(*comparison)
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)
    assert "font-family" not in drawings
    assert "DejaVu" not in drawings
    assert "prefers-color-scheme: dark" in html
    for name in set(re.findall(r"var\(--(\w+)\)", drawings)):
        assert f"--{name}:" in html


@pytest.mark.parametrize(
    "font", ["font: 12px 'DejaVu Sans', sans-serif", "font-size: 12px; font-family: 'DejaVu Sans'"]
)
def test_the_font_is_the_pages_own_whichever_way_matplotlib_writes_it(font):
    svg = f'<svg xmlns="x"><text style="{font}; text-anchor: middle">1</text></svg>'
    assert '<text style="font-size: 12px; text-anchor: middle">1</text>' in page_svg(svg, "p", "label")


def legend_of(html):
    return html[html.index('<ul class="legend">') : html.index("</ul>")]


def test_groups_differ_by_marker_and_splits_by_line(report, comparison, finished):
    shapes = re.findall(r'points="([^"]+)"', legend_of(report(*comparison)))
    assert len(set(shapes)) == len(shapes) == 2
    dashes = re.findall(r'stroke-dasharray="([^"]+)"', legend_of(report(finished("alone"))))
    assert len(set(dashes)) == len(dashes) >= 1  # test is solid


@pytest.mark.parametrize("count", [2, 9])
def test_several_groups_get_a_drawing_for_each_split(report, finished, count):
    html = report(*(finished(f"r{index}", failure=index / 10) for index in range(count)))
    titles = re.findall(r"<h3>([^<]*)</h3>", html)
    assert [title for title in titles if title.startswith("accuracy")] == [
        "accuracy, train",
        "accuracy, validation",
        "accuracy, test",
    ]
    assert html.count('<ul class="legend">') == 2


HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{ & \x00\x1b[31m\u202e ]]> 漢字 {0} ${name} "
    "url(#a) <!-- \ud800"
)


def test_hostile_strings_stay_text(report, make_run):
    bad = HOSTILE
    metrics = [{"step": epoch, "epoch": epoch, f"{bad}/{bad}": epoch * 1.0, f"test/{bad}": 2.0} for epoch in (1, 2)]
    summary = {"synapse": bad, "rule": bad, "citations": [bad, 3], "test/accuracy": 0.5, "parameters": bad}
    runs = [
        make_run(f"<i>{seed}", metrics, summary, {bad: f"{bad}{seed}", "data": bad}, bad, seed, bad, {bad: {bad: bad}})
        for seed in range(2)
    ]
    html = report(*runs)
    page = Page(html)
    assert {name for name, _, _ in page.attributes}.isdisjoint({"script", "img", "i"})
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert "<!--" not in html
    assert not re.search("[\x00\x1b\u202e]", html)
    assert "<script>alert(1)</script>" in " ".join(page.text)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)


@pytest.fixture
def spectra(learned):
    """Runs with measures: two seeds without failures, one with."""
    return [learned(f"{failure}-{seed}", seed, failure, steps=4)[0] for failure, seed in ((0.0, 0), (0.0, 1), (0.5, 0))]


def measures_of(html):
    return html[html.index('<section class="measures">') : html.index("<h2>Configuration")]


def test_a_page_with_measures_is_one_file_of_its_own(report, spectra, write_measures):
    write_measures(spectra[0], "robustness", None, {"rate": [0.0, 0.5], "accuracy": [[0.9], [0.5]]})
    html = report(*spectra)
    page = Page(html)
    for value in page.values("href") + page.values("src"):
        assert value.startswith(("#", "data:,", "data:image/png;base64,", "report-data/"))
    assert "url(" not in html.replace("url(#", "")
    assert "<script" not in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href") if value.startswith("#")} <= set(ids)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)
        assert "DejaVu" not in drawing
        for name in set(re.findall(r"var\(--(\w+)\)", drawing)):
            assert html.count(f"--{name}:") == 2  # light and dark
    text = " ".join(page.text)
    assert (
        "Charts of mean and spread are over all runs; all other figures are of each group's first run with measures:"
        in text
    )
    assert "0.0-0 (failure=0.0), 0.5-0 (failure=0.5)" in text


def test_panels_of_groups_share_their_axes(report, spectra):
    part = measures_of(report(*spectra))
    norms = part[part.index("Frobenius norm") : part.index("Distribution of the weights")]
    first, second = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', norms, re.DOTALL)
    ticks = [re.findall(r'<text[^>]* x="([^"]+)" y="([^"]+)"[^>]*>([^<]*)<', drawing) for drawing in (first, second)]
    assert len(ticks[0]) > 5
    assert ticks[0] == ticks[1]
    assert re.findall("<h5>([^<]*)</h5>", norms) == ["failure=0.0", "failure=0.5"]


def test_no_more_than_six_groups_are_drawn_side_by_side(report, finished, write_measures):
    runs = [finished(f"r{index}", failure=index / 10) for index in range(8)]
    for run in runs:
        write_measures(run, "spectra", {"step": [0, 1], "layer1/norm": [1.0, 2.0]})
    part = measures_of(report(*runs))
    assert "The first 6 groups are drawn side by side. Left out: failure=0.6; failure=0.7." in part
    assert part.count('role="img"') == 6


def test_without_measures_the_page_is_as_ever(report, finished, write_measures):
    run = finished("a")
    before = report(run)
    write_measures(run, "spectra", {"step": [0, 1], "layer1/norm": [1.0, 2.0]})
    after = report(run)
    section = re.search(r'<section class="measures">.*?</section>\n', after, re.DOTALL)[0]
    style = "<style>" + after.split("<style>")[2].split("</style>")[0] + "</style>"
    assert after.replace(section, "").replace(style, "") == before
    assert before.count("<style>") == 1
    assert "--s0" not in before


@pytest.mark.parametrize("name", ["spectra/00000", "spectra", "robustness"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_of_measures_is_named_and_the_rest_is_whole(report, learned, write_measures, name, damage):
    run, _, _ = learned("a", depth=2, features=3, steps=1)
    write_measures(run, "robustness", None, {"rate": [0.0, 0.5], "accuracy": [[0.9], [0.5]]})
    whole = report(run)
    file = run.path / "measures" / f"{name}.safetensors"
    content = file.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    file.write_bytes({"cut": content[: len(content) // 2], "changed": changed, "empty": b""}[damage])
    html = report(run)
    notices = re.findall(r'<p class="notice"><strong>Damaged:</strong> ([^<]*)</p>', html)
    assert len(notices) == 1
    assert str(file) in notices[0]
    heads = set(re.findall("<h[34][^>]*>[^<]*</h[34]>", whole))
    kept = set(re.findall("<h[34][^>]*>[^<]*</h[34]>", html))
    assert kept < heads
    for title in ("Robustness", "Frobenius norm of the weights", "Covariance of the inputs"):
        lost = {"robustness": "Robustness", "spectra/00000": "Frobenius", "spectra": "Covariance"}[name]
        assert (f">{title}<" in html) == (not title.startswith(lost))


def test_hostile_names_in_measures_stay_text(report, make_run, write_measures):
    bad = "<script>alert(1)</script> & \" ' ]]> <!-- {0} $x$"
    for value in (1, 2):
        run = make_run(f"<i>{value}", summary={"test/accuracy": 0.5}, options={bad: f"{bad}{value}"}, recipe=bad)
        series = {"step": [0, 1], f"{bad}/norm": [1.0, 2.0], f"layer1/{bad}": [1.0, 2.0], "layer1/norm": [1.0, 2.0]}
        write_measures(run, "spectra", series, {f"{bad}/left": [1.0], "input/covariance": np.eye(2) * value})
        write_measures(run, "robustness", None, {"rate": [0.0, 0.5], "accuracy": [[0.9], [0.5]]})
    runs = [read_run(run.path.parent / f"<i>{value}") for value in (1, 2)]
    html = report(*runs)
    page = Page(html)
    assert {name for name, _, _ in page.attributes}.isdisjoint({"script", "i"})
    assert "<!--" not in html
    assert "<script>alert(1)</script>" in " ".join(page.text)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        words = "".join(ElementTree.fromstring(drawing).itertext())
        assert "alert" not in words  # labels of runs are in the page's own headings


def test_an_unfinished_run_says_so(report, make_run):
    metrics = [{"step": 7, "epoch": 1, "train/loss": 1.0}]
    text = " ".join(Page(report(make_run("half", metrics))).text)
    assert "Unfinished:" in text
    assert "half (last metrics at epoch 1, step 7)" in text
    assert "No result yet." in text


def test_a_run_without_metrics_says_so(report, make_run):
    assert "there is nothing to draw" in report(make_run("new"))
    assert "without a row of metrics" in report(make_run("odd", summary={"test/accuracy": 0.5}))


def test_many_unfinished_runs_are_counted_rather_than_listed(report, make_run):
    assert "and 2 more, see Runs" in report(*(make_run(f"r{seed}", seed=seed) for seed in range(5)))


def test_a_seed_that_occurs_twice_is_told(report, finished):
    assert "A seed occurs more than once" in report(finished("a", seed=1), finished("b", seed=1))
    assert "A seed occurs more than once" not in report(finished("c", seed=1), finished("d", seed=2))


def test_losses_of_different_recipes_are_not_ranked(report, make_run):
    runs = [make_run(name, summary={"test/loss": 0.1 * len(name)}, recipe=name) for name in ("semantic", "linear")]
    assert "2 groups side by side" in report(*runs)


def test_options_of_one_recipe_only_are_folded_with_its_name(report, make_run):
    text = " ".join(Page(report(make_run("a", options={"lr": 0.5}), make_run("b", recipe="other"))).text)
    assert "0.5 (failing only)" in text


def test_environments_that_differ_are_told_apart(report, finished):
    html = report(
        finished("a", environment={"torch": "2.10", "os": "x"}), finished("b", 1, environment={"torch": "2.11"})
    )
    assert "2.10 (a); 2.11 (b)" in html


def test_unknown_citations_are_listed_as_text(report, make_run):
    html = report(make_run("a", summary={"citations": ["nobody1900", "wan2013"]}, options={"data": "fashion"}))
    assert "without an entry here: nobody1900." in html
    assert "@misc{xiao2017," in html


@pytest.mark.parametrize("key", BIBTEX)
def test_bibtex_entries_are_well_formed(key):
    entry = BIBTEX[key]
    assert re.match(rf"@(software|inproceedings|article|misc|techreport)\{{{key},\n", entry)
    assert entry.count("{") == entry.count("}")
    assert {"title", "author"} <= set(re.findall(r"^  (\w+) +=", entry, re.MULTILINE))
