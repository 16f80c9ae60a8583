"""Pages hold what they should, need nothing from elsewhere, and take text from data as text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browser, executable
from jinja2 import UndefinedError

from results import edit, run_of, store_for_results
from turborec.apply import Example
from turborec.compare import Terms, compare
from turborec.report import page, run_page
from turborec.report.compare_page import compare_page
from turborec.report.study_page import study_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; \u202egnp.exe\u202c \u0000 {{ 7 * 7 }}"
"""What nobody may call an item, a user or a run, and somebody does."""


class Reader(HTMLParser):
    """Collects tags, attributes and text, and notes tags that are not closed where they should be."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def store(tmp_path):
    return store_for_results(tmp_path / "store")


@pytest.fixture
def run(tmp_path, store):
    """A run folder with two epochs of metrics."""
    folder = run_of(tmp_path / "run", store)
    lines = [
        {"kind": "train", "step": s, "time": 0.0, "loss": 3 / s, "lr": 0.001, "gradient_norm": 1.0, "epoch": (s + 2) // 3}
        for s in range(1, 7)
    ]
    epochs = [
        {"kind": "epoch", "step": 3 * e, "time": 0.0, "epoch": e, "loss": 2 / e, "fill": 0.9, "targets_per_second": 1234.5}
        | {"ndcg@10": 0.2 / e}
        for e in (1, 2)
    ]
    usage = [
        {"kind": "usage", "step": 3 * e, "time": 0.0, "epoch": e, "peak_mib": 1500.4 + e, "data_wait_share": 0.01 * e}
        | {"communication_share": 0.25}
        for e in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *epochs, *usage]))
    checkpoint = folder / "checkpoints" / "step_000006"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "state.json").write_text(json.dumps({"best_step": 3}))
    (folder / "environment.json").write_text(json.dumps({"commit": "abc", "command": "turborec train x", "threads": 1}))
    return folder


def check(text: str) -> Reader:
    """What holds of every page."""
    read = Reader(text)
    assert read.open == [] and text.startswith("<!doctype html>")
    assert read.all("html") == [{"lang": "en"}]
    assert len(text.encode()) < page.MOST_BYTES
    assert not read.all("script") and not read.all("iframe") and not read.all("img")
    linked = [a.get(name) for _, a in read.tags for name in ("src", "href", "action", "data") if a.get(name)]
    assert all(link.startswith(("#", "data:,")) for link in linked)
    assert not re.search(r"url\((?!#)|@import", text)
    assert all(not name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert all(attributes.get("scope") in ("col", "row") for attributes in read.all("th"))
    assert all(a.get("role") == "img" and a.get("aria-labelledby") for a in read.all("svg"))
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    return read


def test_an_epoch_that_was_not_validated_has_no_value(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "epoch" and line["epoch"] == 2:
            del line["ndcg@10"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = run_page.run_page(run)
    read = check(text)
    assert "1 (chosen) 3 2.0000 0.2000" in read.text and "2 6 1.0000 –" in read.text
    assert "Validation ndcg@10 by epoch: from 0.2 to 0.2" in text


def test_the_report_of_a_run_holds_what_is_looked_for(run):
    read = check(run_page.run_page(run))
    for heading in (
        "Results",
        "Against the anchors",
        "Training",
        "Recommendations",
        "Data",
        "Protocol",
        "Surroundings",
        "Recipe",
    ):
        assert heading in read.text
    value = json.loads((run / "evaluation" / "test" / "sasrec" / "result.json").read_text())["values"]
    for history in ("masked", "kept"):
        assert f"{value[history]['ndcg@10']:.4f}" in read.text and f"{value[history]['coverage@10']:.4f}" in read.text
    assert "1 (chosen)" in read.text and "2 (chosen)" not in read.text and "1 of 2" in read.text
    assert "sasrec on online_retail, seed 1" in read.text and "turborec train x" in read.text
    assert len(read.all("svg")) == 4 and "1,234" in read.text
    assert all(told in read.text for told in ("1,502 MiB", "1.5%", "25.0%"))
    assert "max_length: 12" in read.text


def test_intervals_of_the_report_hold_its_values(run):
    facts = run_page._results(run, {"model": {"kind": "sasrec"}, "select": "ndcg@10"})
    assert facts["models"] == ["sasrec", "popularity"]
    for row in facts["tables"]["masked"]:
        for value, low, high in row["cells"]:
            assert low is None or low <= value <= high
    assert [label for label, _ in facts["against"]] == ["ndcg@10, popularity", "hr@10, popularity", "mrr, popularity"]


def test_a_run_that_is_not_finished_has_a_report_that_says_so(run):
    for path in (run / "evaluation" / "test").glob("*/result.json"):
        path.unlink()
    read = check(run_page.run_page(run, missing="the store is not there"))
    assert "There are no test results yet" in read.text and "the store is not there" in read.text


def test_anchors_of_another_protocol_are_left_out_and_it_says_why(run):
    edit(run / "evaluation" / "test" / "popularity" / "result.json", turborec="0.0.1")
    read = check(run_page.run_page(run))
    assert "The anchors are left out." in read.text and "turborec: " in read.text and "Against the anchors" not in read.text


def test_a_run_without_any_metrics_has_a_report(run):
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    read = check(run_page.run_page(run))
    assert not read.all("svg") and "Results" in read.text


def hostile_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page on which every text that comes from somewhere is hostile."""
    (run / "status.json").write_text(json.dumps({"state": "failed", "reason": HOSTILE}))
    (run / "environment.json").write_text(json.dumps({"command": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}))
    example = Example(HOSTILE, [HOSTILE], [(HOSTILE, HOSTILE, 1.0)])
    monkeypatch.setattr(run_page, "_examples", lambda _: [example])
    monkeypatch.setattr(run_page, "_data", lambda *_: {"rows": [(HOSTILE, HOSTILE)], "intake": {}})
    return run_page.run_page(run, run=object())


def test_text_from_data_stays_text(run, monkeypatch):
    text = hostile_page(run, monkeypatch)
    read = check(text)
    assert "<script>alert(1)</script>" in read.text and "{{ 7 * 7 }}" in read.text and "&amp;" in read.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", text)
    assert r"\u202egnp.exe\u202c" in read.text and r"\u0000" in read.text


def test_a_comparison_holds_its_tables_and_takes_names_as_text(tmp_path, store):
    first = run_of(tmp_path / "<b>first & 'one'", store, seed=1)
    second = run_of(tmp_path / "second", store, 0.6, seed=2, width=32)
    found = compare([str(first), str(second), f"{first}/popularity"], Terms(resamples=200))
    read = check(compare_page(found))
    assert "Compared with <b>first & 'one'" in read.text and not read.all("b")
    for one in found.differences:
        assert f"{one.difference:+.4f}".replace("-", "−") in read.text
    assert len(read.all("svg")) == 3 + 2 * len({piece.topic for piece in found.slices})
    for remark in found.remarks:
        assert remark in read.text


def row_of(name, lever="", **facts):
    values = {"training_seconds": 4.0, "training_cpu_seconds": 3.0, "validation_seconds": 1.0, "validation_cpu_seconds": 1.0}
    values |= {"peak_mib": 900.0, "nonfinite_steps": 0, "epochs": 2, "best_epoch": 2, "validation": 0.2, "recall@20": 0.1}
    plain = {"name": name, "lever": lever, "overrides": [], "state": "finished", "why": None}
    return plain | {"values": values | {"quality_cpu_seconds": 8.0}, "curve": [[5, 4, 0.1], [10, 8, 0.2]]} | facts


def a_study():
    """A study with a variant of each state, told of in hostile words."""
    faster = row_of("batch-2x-none", "batch", overrides=["batches.tokens=4096"])
    faster["values"] |= {"training_cpu_seconds": 1.5, "quality_cpu_seconds": 4.0}
    broken = row_of("float16", "amp", state="diverged", why=HOSTILE, curve=[])
    broken["values"] = {"nonfinite_steps": 3, "epochs": 0, "recall@20": None, "validation": None, "quality_cpu_seconds": None}
    idle = row_of("clip-5", "clip", state="not trained", why="the same", values={}, curve=[])
    told = {"name": "batch-2x-none", "held": "held", "told": f"2.00x as fast {HOSTILE}"}
    lever = {"claim": "twice as fast", "truth": "half the updates", "held": "held", "verdict": "held", "variants": [told]}
    return {
        "recipe": HOSTILE,
        "select": "recall@20",
        "plan": {"levers": [], "share": 0.98, "seeds": 1},
        "device": "cpu",
        "clock": "cpu_seconds",
        "data": {"users": 3},
        "terms": "Generated, not Music4All: by a script",
        "warning": None,
        "cautions": ["There is one seed."],
        "rows": [row_of("baseline"), faster, broken, idle],
        "levers": [{"name": "batch", **lever}, {"name": "amp", **lever}],
        "provenance": {"commit": "abc"},
    }


def test_a_study_holds_its_trainings_and_takes_texts_as_text():
    text = study_page(a_study())
    read = check(text)
    assert "alert(1)" in text and "<script" not in text and "\u202e" not in text
    assert "Generated, not Music4All: these numbers say how the trainings do" in read.text
    assert "2. batch-2x-none batches. tokens=4096 1.50 s 2.00×" in read.text
    assert "4.00 s 2.00×" in read.text  # the time to quality, and how much sooner that is
    assert "3. float16 diverged: " in read.text and "4. clip-5 not trained: the same – – – –" in read.text
    assert len(read.all("svg")) == 3
    assert "batch: held The guide: twice as fast Measured: batch-2x-none : 2.00x as fast" in read.text


def test_a_study_in_which_nothing_was_validated_has_a_page():
    found = {"recipe": "x", "select": "ndcg@10", "plan": {"levers": [], "share": 0.98, "seeds": 2}, "device": "cuda"}
    found |= {"clock": "seconds", "data": {}, "terms": None, "warning": "busy", "cautions": [], "levers": [], "provenance": {}}
    text = study_page(found | {"rows": [row_of("baseline", state="failed", why="no space", values={}, curve=[])]})
    assert "failed: no space" in check(text).text and "<svg" not in text


def test_a_fact_that_a_page_lacks_is_an_error():
    with pytest.raises(UndefinedError):
        page.render("run", {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.1 + 0.2, "0.3"),
        ([], "–"),
        ([1, None], "1, –"),
        ("x", "x"),
        ({}, "{}"),
    ],
)
def test_facts_in_words(value, expected):
    assert page.words(value) == expected


def test_times_are_told_in_utc_and_odd_ones_not_at_all():
    assert page.moment(0) == "1970-01-01 00:00 UTC" == page.moment("1970-01-01T00:00:00+00:00")
    assert page.moment("yesterday") == page.moment(10**30) == page.moment(None) == ""


# --- in a real browser ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["report", "comparison", "hostile", "study"])
def test_a_page_opens_quietly_in_a_browser_and_fits_a_phone(kind, run, store, tmp_path, monkeypatch):
    if executable() is None:
        pytest.skip("no browser: install chromium, or name one in TURBOREC_BROWSER")
    file = tmp_path / "page.html"
    if kind == "comparison":
        other = run_of(tmp_path / ("other" * 12), store, 0.6, seed=2, width=32)
        file.write_text(compare_page(compare([str(run), str(other)], Terms(resamples=200))), encoding="utf-8")
    elif kind == "study":
        file.write_text(study_page(a_study()), encoding="utf-8")
    else:
        text = run_page.run_page(run) if kind == "report" else hostile_page(run, monkeypatch)
        file.write_text(text, encoding="utf-8")
    with browser(tmp_path / "profile") as opened:
        for width, dark in ((1200, False), (390, False), (390, True)):
            opened.open(file, width, dark=dark)
            assert opened.complaints == [] and opened.requests == [file.as_uri()]
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.evaluate(
                "[...document.querySelectorAll('h1, h2, svg')].every(e => e.getBoundingClientRect().width > 50)"
            )
            assert opened.evaluate("[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().height > 40)")
            assert opened.evaluate("document.querySelectorAll('svg path').length") > 10
            paper, ink = (opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
            assert (_brightness(paper) < _brightness(ink)) == dark
        opened.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def _brightness(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
