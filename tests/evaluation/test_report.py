import base64
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation import glossary, report
from tests.evaluation.conftest import run, write_history


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


@pytest.fixture
def page(dataset, tasks, tmp_path):
    write_history(tmp_path / "history" / "gan")
    results = run(dataset, tasks, tmp_path)
    (tmp_path / "data").mkdir()
    pd.DataFrame({"class": dataset.class_names, "train": [30, 30, 30]}).to_csv(
        tmp_path / "data" / "classes.csv", index=False
    )
    Image.new("RGB", (9, 9), "teal").save(tmp_path / "data" / "contact-sheet.png")

    def write(name):
        places = {"histories": tmp_path / "history", "plots": tmp_path / "plots", "path": tmp_path / name}
        report.write(
            results, {"images": tmp_path / "data"}, source="<i>stripes</i>", commit="c0ffee" * 5, **places
        )
        return (tmp_path / name).read_text()

    assert write("one.html") == write("two.html")
    return write("one.html")


def test_the_page_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in parsed.links)
    assert not re.search(r"https?:|url\(|@import", page)


def test_every_picture_is_in_the_page_and_every_anchor_has_its_place(page, tmp_path):
    for picture in [
        *(tmp_path / "plots").rglob("*.png"),
        *(tmp_path / "history").rglob("*.png"),
        tmp_path / "data" / "contact-sheet.png",
    ]:
        assert base64.b64encode(picture.read_bytes()).decode() in page, picture.name
    for link in Page(page).links:
        assert not link.startswith("#") or f'id="{link[1:]}"' in page


def test_warnings_are_shown_at_the_top_and_next_to_the_model(dataset, tasks, tmp_path):
    results = run(dataset, tasks, tmp_path)
    warned = {"rule": "collapsed", "what": "gan is <flat>", "remedy": "train it again"}
    results["warnings"] = {"gan": [warned], "judge": [{**warned, "what": "judge is weak"}]}
    report.write(results, {}, plots=tmp_path / "plots", path=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    top, section = page.index('<section id="warnings">'), page.index('<section id="model-gan">')
    text = "<b>Collapsed.</b> gan is &lt;flat&gt;."
    assert page.index(text, top) < page.index("<h2>Summary</h2>") and text in page[section:]
    assert page.count(text) == 2 and page.count("judge is weak") == 1 and "Train it again." in page
    report.write(results | {"warnings": {}}, {}, plots=tmp_path / "plots", path=tmp_path / "page.html")
    assert "<h2>Warnings</h2>" not in (tmp_path / "page.html").read_text()


def test_names_from_the_data_cannot_write_html(page):
    assert "<b>bold</b>" not in page and "<i>stripes</i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page and "&lt;i&gt;stripes&lt;/i&gt;" in page


def test_the_page_shows_data_code_and_protocol(page):
    for text in (
        "real against real scores",
        "14 November 2023",
        "c0ffeec0ffee",
        "d1d1d1d1d1d1",
        "1,234",
        "31</b> test examples",
        "Seed 0",
    ):
        assert text in page, text


def test_the_parts_of_a_trainings_time_add_up_and_its_cost_is_shown_where_there_is_a_price():
    seconds = {
        "start": 2.0,
        "build": 1.0,
        "compute": 5.0,
        "data": 1.0,
        "validation": 0.5,
        "samples": 0.25,
        "checkpoint": 0.25,
    }
    times = {
        "total": 16.0,
        **seconds,
        "loop": 9.0,
        "write": 0.5,
        "logging": 0.5,
        "shutdown": 3.0,
        "workers": 2,
    }
    shown = report._times({"gan": times, "ae": {**times, "total": 1.0, "price_per_hour": 0.5, "cost": 0.25}})
    assert {part: cells[0] for part, cells in shown["rows"].items()} == {
        "start-up": (3.0, 18.75),
        "compute": (5.0, 31.25),
        "data": (1.0, 6.25),
        "validation": (0.5, 3.125),
        "samples": (0.25, 1.5625),
        "checkpoint": (0.75, 4.6875),
        "logging": (0.5, 3.125),
        "shutdown": (3.0, 18.75),
        "other": (2.0, 12.5),
    }
    # The second process died before it recorded all of the total: the sum of the known parts is shown.
    assert shown["total"] == [16.0, 14.0]
    assert list(shown["known"]) == ["gan", "ae"] and shown["prices"] == [0.5]


def test_the_page_shows_the_cost_only_where_it_is_known(dataset, tasks, tmp_path):
    write_history(tmp_path / "history" / "gan")
    results = run(dataset, tasks, tmp_path)
    times = tmp_path / "history" / "gan" / "times.json"
    for more, expected in (
        ({}, False),
        ({"cost": 0.0123, "price_per_hour": 1.75}, True),
    ):
        times.write_text(json.dumps(json.loads(times.read_text()) | more))
        places = {
            "histories": tmp_path / "history",
            "plots": tmp_path / "plots",
            "path": tmp_path / "page.html",
        }
        report.write(results, {"images": tmp_path}, **places)
        page = (tmp_path / "page.html").read_text()
        assert "12.5 s" in page
        assert [text in page for text in ("cost, at 1.75 an hour", "0.0123")] == [expected] * 2


def test_numbers_are_shown_with_three_digits_and_their_unit():
    assert glossary.measure("accuracy").show(0.9833) == "98.3 %"
    assert glossary.measure("psnr").show(20) == "20.0 dB"
    assert glossary.measure("kid").show(-0.00123) == "−0.00123"
    assert glossary.measure("fid").show(1234.5) == "1234"
    assert glossary.measure("reconstruction_fid").title == "Fréchet distance (FID) of reconstructions"
    assert glossary.measure("of_a_new_model").title == "Of a new model"
