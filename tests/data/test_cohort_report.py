"""The cohort report: says what was found and what was not looked at, counts patients, names none."""

import dataclasses
import html.parser
import json

import pytest
from typer.main import get_command

from hscc_edge.cli import app
from hscc_edge.data.cohort import read_cohort, write_cohort
from hscc_edge.data.cohort_report import counts, render
from hscc_edge.data.cohort_sample import PERCENTILES, contact_sheet, sample

CONDITIONS = {"date": "2026-01-01"}


class Text(html.parser.HTMLParser):
    """The visible text and the tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def run(*words):
    get_command(app).main(["cohort", "report", *map(str, words)], standalone_mode=False)


def test_the_page_names_no_patient_and_loads_nothing(phantom, tmp_path, capsys):
    run(phantom.root, "--out", tmp_path / "r.html", "--json")
    assert json.loads(capsys.readouterr().out)["checked"] is True
    page = (tmp_path / "r.html").read_text()
    for item in phantom.instances:
        for identifier in (item.patient, item.study, item.series, item.sop, item.file):
            assert identifier not in page
    found = Text(page)
    assert not [attrs for _, attrs in found.tags if attrs.get("src", "data:").startswith("http") or "href" in attrs]
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in found.tags if tag == "svg")
    text = " ".join(found.words)
    assert "found nothing that spoils figures" in text and "age band" in text and "not locked" in text


def test_what_was_not_checked_is_said(phantom, tmp_path):
    run(phantom.root, "--out", tmp_path / "r.html", "--no-check")
    assert "Not checked" in (tmp_path / "r.html").read_text()


def test_faults_come_with_advice(phantom):
    copies = {"groups": 1, "files": 2, "across_splits": 1}
    check = {
        "unreadable": ["x"], "altered": [], "missing": ["val: ring"], "patients_in_two_splits": 2,
        "duplicates": {"exact": copies, "near": copies}, "warnings": ["borders tell the class"],
    }  # fmt: skip
    page = render(phantom, check, CONDITIONS)
    for text in (
        "1 files that cannot be read",
        "fetch them again",
        "2 patients in two splits",
        "--together",
        "borders",
    ):
        assert text in page


def test_left_out_files_and_overrides_are_shown(phantom, tmp_path):
    copy = dataclasses.replace(phantom, root=tmp_path, files=phantom.root.resolve())
    write_cohort(tmp_path, copy, {"left_out": {"no label": 7}})
    assert "left out at import: no label, 7 files" in render(read_cohort(tmp_path), None, CONDITIONS)


def test_counts_are_of_patients_and_images(phantom):
    table = dict(counts(phantom))
    assert sum(images for row in table.values() for _, images in row.values()) == len(phantom.instances)
    assert sum(patients for row in table.values() for patients, _ in row.values()) == 40


def test_a_sample_is_spread_and_survives_damage(phantom, tmp_path):
    broken = dataclasses.replace(phantom.instances[0], file="absent.dcm")
    cohort = dataclasses.replace(phantom, instances=(broken, *phantom.instances[1:]))
    found = sample(cohort, per_class=5)
    assert [item.label for item in found] == list(phantom.classes)
    assert sum(item.unreadable for item in found) == 1 and sum(len(item.thumbs) for item in found) == 19
    assert all(item.quantiles.shape == (len(item.thumbs), len(PERCENTILES)) for item in found)
    assert contact_sheet(found).startswith(b"\x89PNG") and contact_sheet(found) == contact_sheet(found)


@pytest.mark.parametrize("per_class", [1, 500])
def test_a_sample_never_repeats(phantom, per_class):
    members = sum(item.label == phantom.classes[0] for item in phantom.instances)
    assert len(sample(phantom, per_class)[0].thumbs) == min(per_class, members)
