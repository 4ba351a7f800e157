"""The dashboard in Chromium, on a running daemon with dcmtk as the modality: what people do, and who can do it."""

import json
import re
import shutil
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from box import Box, storescu, wait_for
from browser import chromium, findings, window
from filled import PASSWORD
from outgoing import archive
from playwright.sync_api import Browser, Page, expect

from hscc_edge.bundle import read_bundle, rewrite
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.web.accounts import accounts_file, add_account
from hscc_edge.serve.worker import models

MORE = """
[[destination]]
name = "registry"
ae_title = "REGISTRY"
host = "127.0.0.1"
port = {registry}
attempts = 1
[web]
enabled = true
port = 0
"""
PAGES = ("/", "/studies", "/outbox", "/models", "/charts", "/box", "/audit")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@dataclass(frozen=True)
class Day:
    """A running daemon; the registry takes reports once `willing` is set."""

    box: Box
    port: int
    address: str
    station: Station
    willing: threading.Event
    cases: list[list[Path]]

    def key(self, case: int) -> str:
        """What the pages call a study."""
        return self.station.who(str(pydicom.dcmread(self.cases[case][0], stop_before_pixels=True).StudyInstanceUID))

    def journal(self, query: str) -> list[tuple]:
        """Rows of the journal."""
        with sqlite3.connect(self.box.root / "state" / "journal.sqlite") as db:
            found = db.execute(query).fetchall()
        db.close()
        return found


@pytest.fixture(scope="module")
def day(dense, phantom, tmp_path_factory):
    """Two studies reported and taken by the archive alone; a second bundle active; a third one its shadow."""
    root, willing = tmp_path_factory.mktemp("day"), threading.Event()
    cases = [[phantom.path(item) for item in case] for case in phantom.cases("study").values()]
    with archive() as (port, _), archive(lambda event: 0x0000 if willing.is_set() else 0xA900) as (registry, _):
        box = Box(root, dense, port, more=MORE.format(registry=registry))
        config = read_config(box.config)
        station = Station(config, open_state(config.state))
        journal = station.journal()
        models.ensure(station, journal)
        for number, state in ((1, models.INSTALLED), (2, models.SHADOW)):
            later = read_bundle(shutil.copytree(dense, root / f"later-{number}"))
            for _ in range(number):
                later = rewrite(later, {}, decision={**later.spec.decision, "temperature": 4.0 * number})
            found = models.install(station, journal, later.root, state=state)
            if number == 1:
                models.activate(journal, found.digest)
        journal.close()
        for name, role in (("olga", "operator"), ("viktor", "viewer")):
            add_account(accounts_file(config.state), name, role, PASSWORD)
        with box.running() as dicom:
            web = json.loads((root / "state" / "daemon.json").read_text())["ports"]["web"]
            found = Day(box, dicom, f"http://127.0.0.1:{web}", station, willing, cases)
            storescu(dicom, cases[0])
            storescu(dicom, cases[1])
            ended = "SELECT COUNT(*) FROM deliveries WHERE state IN ('delivered', 'dead')"
            assert wait_for(lambda: found.journal(ended) == [(4,)])
            assert wait_for(lambda: found.journal("SELECT COUNT(*) FROM observations WHERE shadow = 1") == [(2,)])
            yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def sign_in(page: Page, name: str) -> None:
    page.goto("/")
    expect(page).to_have_title("Sign in - HSCC_EDGE")
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Now", level=1)).to_be_visible()


def goto(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(rf"^{name}\b")).click()


def test_a_viewer_finds_a_study_and_reads_its_timeline(day: Day, browser: Browser):
    with window(browser, day.address) as page:
        sign_in(page, "viktor")
        goto(page, "Studies")
        page.get_by_label("Key, its beginning").fill(day.key(0)[:5])
        page.get_by_role("button", name="Find").click()
        page.get_by_role("link", name=day.key(0)).click()
        steps = page.get_by_role("region", name="Timeline")
        for words in ("First byte", "Work began", "Report made", "Sent", "Dead letter"):
            expect(steps.get_by_text(words, exact=True).first).to_be_visible()
        expect(page.get_by_text("preliminary, not verified")).to_be_visible()
        goto(page, "Outbox")
        expect(page.get_by_text("An operator can send them again")).to_be_visible()
        expect(page.get_by_role("checkbox")).to_have_count(0)
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_title("Sign in - HSCC_EDGE")
        page.go_back()
        expect(page).to_have_title("Sign in - HSCC_EDGE")


def test_a_page_shows_what_comes_without_a_reload_and_keeps_the_focus(day: Day, browser: Browser):
    with window(browser, day.address) as page:
        sign_in(page, "viktor")
        expect(page.get_by_text("live", exact=True)).to_be_visible()
        page.evaluate("window.loadedOnce = true")
        more = page.get_by_role("link", name="More about: 2 dead letters")
        more.focus()
        storescu(day.port, day.cases[2])
        expect(page.get_by_role("link", name=day.key(2)).first).to_be_visible()
        expect(page.get_by_role("region", name="Last events")).to_contain_text(day.key(2))
        assert page.evaluate("window.loadedOnce") is True
        assert "More about" in page.evaluate("document.activeElement.getAttribute('aria-label') || ''")


def test_an_operator_sends_dead_letters_again(day: Day, browser: Browser):
    assert wait_for(lambda: day.journal("SELECT COUNT(*) FROM deliveries WHERE state = 'dead'") == [(3,)])
    with window(browser, day.address) as page:
        sign_in(page, "olga")
        goto(page, "Outbox")
        day.willing.set()
        page.get_by_role("checkbox", name=f"Dead letter of study {day.key(0)} for registry").check()
        page.get_by_role("button", name="Send the ticked ones again").click()
        expect(page.get_by_text("1 dead letter is on the way again.")).to_be_visible()
        page.get_by_role("button", name="Send all 2 again").click()
        expect(page.get_by_text("No dead letters.")).to_be_visible()
        assert wait_for(lambda: day.journal("SELECT DISTINCT state FROM deliveries") == [("delivered",)])
        page.goto(f"/studies/{day.key(0)}")
        expect(page.get_by_text("Sent again by hand")).to_be_visible()
        goto(page, "Audit")
        expect(page.get_by_role("cell", name="redrive").first).to_be_visible()


def test_an_operator_rolls_a_model_back(day: Day, browser: Browser):
    with window(browser, day.address) as page:
        sign_in(page, "olga")
        goto(page, "Models")
        expect(page.get_by_text("same decision")).to_be_visible()
        page.get_by_text("Roll back to").click()
        page.get_by_label("Why").fill("accession 1234567")
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_text("without long numbers")).to_be_visible()
        page.go_back()
        page.get_by_text("Roll back to").click()
        page.get_by_label("Why").fill("less sure than before")
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_text("is back at the bundle before")).to_be_visible()
        expect(page.get_by_text("by olga: less sure than before")).to_be_visible()
    states = dict(day.journal("SELECT version, state FROM models"))
    assert states == {1: "active", 2: "withdrawn", 3: "shadow"}


def test_everything_works_without_scripts(day: Day, browser: Browser):
    context = browser.new_context(base_url=day.address, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(20_000)
    sign_in(page, "viktor")
    for name in ("Studies", "Outbox", "Models", "Charts", "Box", "Audit", "Now"):
        goto(page, name)
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    context.close()


def test_every_page_is_accessible_in_light_and_dark_and_fits_a_phone(day: Day, browser: Browser):
    with window(browser, day.address, viewport=DESK) as page:
        page.goto("/sign-in")
        found = {"/sign-in": findings(page)}
        sign_in(page, "olga")
        for path in (*PAGES, f"/studies/{day.key(0)}", "/studies/000000000000", "/outbox?done=1"):
            page.goto(path)
            found[path] = findings(page)
            page.emulate_media(color_scheme="dark")
            found[f"{path} dark"] = findings(page, only="color-contrast")
            page.set_viewport_size(PHONE)
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), path
            page.emulate_media(color_scheme="light")
            page.set_viewport_size(DESK)
    assert {path: items for path, items in found.items() if items} == {}


def test_the_keyboard_reaches_the_content_at_once(day: Day, browser: Browser):
    with window(browser, day.address) as page:
        sign_in(page, "viktor")
        page.goto("/studies")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("Key, its beginning")).to_be_focused()


def test_no_identifier_of_what_was_sent_is_on_any_page_or_in_any_log(day: Day, browser: Browser):
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for case in day.cases[:3] for path in case]
    names = ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber")
    planted = {str(item.get(name)) for item in headers for name in names} - {"", "None"}
    assert len(planted) > 12
    with window(browser, day.address) as page:
        sign_in(page, "olga")
        texts = [day.box.log.read_text()]
        for path in (*PAGES, *(f"/studies/{day.key(case)}" for case in range(3))):
            page.goto(path)
            texts.append(page.content())
    assert [(word, text[:60]) for text in texts for word in planted if word in text] == []
