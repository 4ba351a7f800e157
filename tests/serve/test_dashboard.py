"""The dashboard's rules over HTTP: who sees and changes what, forms, sessions, searches, queries that stay small."""

import re
import time
from dataclasses import replace
from urllib.parse import urlsplit

import filled
import httpx
import pytest
from filled import PASSWORD, uid

from hscc_edge.serve import instances, outbox
from hscc_edge.serve.audit import tail, verify
from hscc_edge.serve.timeline import KINDS
from hscc_edge.serve.web import words
from hscc_edge.serve.web.accounts import accounts_file, add_account, remove_account

PAGES = ("/", "/studies", "/outbox", "/models", "/charts", "/box", "/audit")


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A filled station, with accounts, to be copied."""
    found = filled.station(tmp_path_factory.mktemp("origin"))
    filled.fill(found)
    filled.add_accounts(found)
    return found


@pytest.fixture(scope="module")
def station(origin, tmp_path_factory):
    """A filled station without accounts."""
    found = filled.copied(origin, tmp_path_factory.mktemp("open"))
    accounts_file(found.config.state).unlink()
    return found


@pytest.fixture(scope="module")
def everyone(station):
    """A browser on the box itself."""
    with filled.client(station) as browser:
        yield browser


@pytest.fixture
def guarded(origin, tmp_path):
    """A filled station with an operator and a viewer, and its browser."""
    found = filled.copied(origin, tmp_path)
    with filled.client(found) as browser:
        yield found, browser


def csrf(page: httpx.Response) -> str:
    return re.search(r'name="csrf" value="([^"]+)"', page.text)[1]


def sign_in(browser: httpx.Client, name: str, password: str = PASSWORD) -> httpx.Response:
    return browser.post("/sign-in", data={"csrf": csrf(browser.get("/sign-in")), "name": name, "password": password})


def links(page: httpx.Response) -> set[str]:
    return {link.replace("&amp;", "&") for link in re.findall(r'(?:href|src)="(/[^"]*)"', page.text)}


def test_every_link_of_every_page_leads_somewhere_and_no_identifier_is_on_any(everyone):
    seen, waiting = set(), {"/"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = everyone.get(path)
        assert answer.status_code == 200, path
        leaked = [word for word in filled.SENTINELS if word in answer.text or word in path]
        assert not leaked, (path, leaked)
        if answer.headers["content-type"].startswith("text/html"):
            waiting |= {link.partition("#")[0] for link in links(answer)} - seen
    assert {*PAGES, "/static/style.css", "/static/live.js", "/studies?state=dead"} <= seen
    assert sum(path.startswith("/studies/") for path in seen) >= 6


def test_a_study_tells_its_whole_story(station, everyone):
    page = everyone.get(f"/studies/{station.who(uid(1))}").text
    order = ["First byte", "Work began", "Report made", "Sent", "Committed", "Late instances", "Dead letter"]
    places = [page.index(f"<strong>{word}</strong>") for word in order]
    assert places == sorted(places)
    assert "superseded" in page and "current" in page and "status 0xa900" in page and "Glioma" in page
    assert "MR Image" in page.replace("MR", "MR Image", 1) and "1.2.840" not in page
    assert "out of scope: modality" in everyone.get(f"/studies/{station.who(uid(4))}").text
    assert instances.OTHER_CONTENT.partition(",")[0] in everyone.get(f"/studies/{station.who(uid(5))}").text


@pytest.mark.parametrize(
    ("state", "numbers"),
    [("open", {6}), ("reported", {1, 2, 3, 5}), ("no-result", {4}), ("dead", {1}), ("", {1, 2, 3, 4, 5, 6})],
)
def test_studies_by_state(state, numbers, station, everyone):
    shown = set(re.findall(r'href="/studies/([0-9a-f]{12})"', everyone.get("/studies", params={"state": state}).text))
    assert shown == {station.who(uid(number)) for number in numbers}


def find(browser: httpx.Client, wanted: str) -> httpx.Response:
    return browser.post("/studies/find", data={"csrf": csrf(browser.get("/studies")), "q": wanted})


def test_a_uid_is_searched_without_standing_in_any_address(station, everyone):
    key = station.who(uid(2))
    for wanted in (uid(2), key, key[:6]):
        answer = find(everyone, f" {wanted} ")
        assert answer.status_code == 303 and key[:6] in answer.headers["location"]
        assert uid(2) not in answer.headers["location"]
        assert f"/studies/{key}" in everyone.get(answer.headers["location"]).text or answer.headers[
            "location"
        ].endswith(key)
    absent = find(everyone, "1.2.3.4")
    assert "No study has such a key" in everyone.get(absent.headers["location"]).text
    assert find(everyone, "Doe^Jane").status_code == 400


def test_pages_of_many_studies_follow_one_another(tmp_path):
    found = filled.station(tmp_path)
    journal = found.journal()
    for number in range(120):
        filled.add_study(found, journal, number, count=1)
    journal.close()
    with filled.client(found) as browser:
        for state in ("", "open"):
            path, seen = f"/studies?state={state}", []
            while path:
                page = browser.get(path)
                seen += re.findall(r'href="/studies/([0-9a-f]{12})"', page.text)
                path = next((link for link in links(page) if "before=" in link), None)
            assert seen == [found.who(uid(number)) for number in reversed(range(120))]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/studies/000000000000", 404), ("/studies/1.2.3", 404), ("/studies?state=odd", 400),
        ("/studies?before=x", 400), ("/studies?before=nan", 400), ("/studies?before=1e999", 400),
        ("/outbox?before=99999999999999999999", 400), ("/outbox?done=x", 400), ("/nothing", 404),
        ("/static/../server.py", 404), ("/static/%2e%2e/server.py", 404), ("/studies/find", 404),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(path, status, everyone):
    answer = everyone.get(path)
    assert answer.status_code == status and "Traceback" not in answer.text


def test_without_accounts_everyone_here_sees_and_nobody_changes(station, everyone):
    page = everyone.get("/outbox")
    assert "everyone here" in page.text and "Send the ticked" not in page.text
    form = {"csrf": csrf(everyone.get("/studies")), "all": "yes"}
    assert everyone.post("/outbox/redrive", data=form).status_code == 403
    assert everyone.post("/models/roll-back", data={**form, "name": "brain", "reason": "bad"}).status_code == 403
    journal = station.journal()
    assert outbox.counts(journal)["dead"] == 1
    journal.close()


def test_with_accounts_nobody_sees_anything_before_signing_in(guarded):
    _, browser = guarded
    for path in PAGES:
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert browser.get("/live").status_code == 401
    assert browser.get("/", headers={"X-Live": "1"}).status_code == 401
    assert browser.post("/studies/find", data={"csrf": csrf(browser.get("/sign-in")), "q": "a"}).status_code == 403
    assert "Queue" not in browser.get("/sign-in").text


def test_a_viewer_looks_and_an_operator_sends_again(guarded):
    station, browser = guarded
    assert sign_in(browser, "viktor").headers["location"] == "/"
    form = {"csrf": csrf(browser.get("/outbox")), "all": "yes"}
    assert browser.post("/outbox/redrive", data=form).status_code == 403
    assert sign_in(browser, "olga").status_code == 303
    page = browser.get("/outbox")
    (letter,) = re.findall(r'name="id" value="(\d+)"', page.text)
    assert browser.post("/outbox/redrive", data={"csrf": csrf(page)}).status_code == 400
    assert browser.post("/outbox/redrive", data={"csrf": csrf(page), "id": "9; DROP"}).status_code == 400
    answer = browser.post("/outbox/redrive", data={"csrf": csrf(page), "id": [letter, "99"]})
    assert answer.headers["location"] == "/outbox?done=1"
    assert "1 dead letter is" in browser.get("/outbox?done=1").text
    journal = station.journal()
    assert outbox.counts(journal).get("dead", 0) == 0
    lines = tail(station.config.state, station.key, 10)
    assert [line.action for line in lines] == ["login", "login", "redrive"] and verify(
        station.config.state, station.key, journal
    )[1] == ["the journal does not know its last line: was its record removed?"]
    assert lines[-1].facts == {"account": "olga", "chosen": 2}
    journal.close()
    assert "redrive" in browser.get("/audit").text


def test_a_form_of_another_page_session_or_site_is_refused(guarded):
    _, browser = guarded
    stranger = csrf(browser.get("/sign-in"))
    sign_in(browser, "olga")
    right = csrf(browser.get("/outbox"))
    forged = right[:-2] + ("A" if right[-2] != "A" else "B") + right[-1]  # two bits of the last one count not
    wrong = [
        ({}, {}), ({"csrf": ""}, {}), ({"csrf": stranger}, {}), ({"csrf": forged}, {}),
        ({"csrf": right}, {"Origin": "https://elsewhere.example"}),
        ({"csrf": right}, {"Sec-Fetch-Site": "cross-site"}), ({"csrf": right}, {"Sec-Fetch-Site": "same-site"}),
    ]  # fmt: skip
    for form, headers in wrong:
        assert browser.post("/outbox/redrive", data={"all": "yes", **form}, headers=headers).status_code == 403
    assert browser.post("/sign-out", data={"csrf": stranger}).status_code == 403
    multipart = browser.post("/outbox/redrive", files={"csrf": (None, right), "all": (None, "yes")})
    assert multipart.status_code == 415
    own = {"Origin": f"http://127.0.0.1:{urlsplit(str(browser.base_url)).port}", "Sec-Fetch-Site": "same-origin"}
    assert browser.post("/outbox/redrive", data={"csrf": right, "all": "yes"}, headers=own).status_code == 303


def test_signing_in_changes_the_session_and_signing_out_ends_every_copy_of_it(guarded):
    _, browser = guarded
    browser.get("/sign-in")
    planted = browser.cookies["hscc"]
    answer = sign_in(browser, "olga")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
    copied = browser.cookies["hscc"]
    assert copied != planted and browser.get("/").status_code == 200
    browser.post("/sign-out", data={"csrf": csrf(browser.get("/"))})
    for old in (copied, planted):
        browser.cookies.clear()
        assert browser.get("/", headers={"Cookie": f"hscc={old}"}).status_code == 303
    browser.cookies.clear()
    assert browser.get("/", headers={"Cookie": "hscc=olga"}).status_code == 303


def test_a_session_ends_idle_old_with_its_password_and_with_its_account(guarded, monkeypatch):
    station, browser = guarded
    real, path = time.time, accounts_file(station.config.state)

    def in_the_past(seconds: float) -> httpx.Response:
        monkeypatch.setattr(time, "time", lambda: real() - seconds)
        sign_in(browser, "olga")
        monkeypatch.setattr(time, "time", real)
        return browser.get("/")

    assert in_the_past(station.config.web.session_s + 5).status_code == 303
    assert in_the_past(station.config.web.session_s - 60).status_code == 200
    sign_in(browser, "viktor")
    assert browser.get("/").status_code == 200
    add_account(path, "viktor", "viewer", "another horse battery")
    assert browser.get("/").status_code == 303
    sign_in(browser, "viktor", "another horse battery")
    remove_account(path, "viktor")
    assert browser.get("/").status_code == 303


def test_what_a_page_asks_by_itself_keeps_nobody_signed_in(guarded, monkeypatch):
    _, browser = guarded
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 600)
    sign_in(browser, "viktor")
    monkeypatch.setattr(time, "time", real)
    assert "set-cookie" not in browser.get("/", headers={"X-Live": "1"}).headers
    assert "set-cookie" in browser.get("/").headers


def test_a_flood_of_sign_ins_is_slowed_and_others_still_get_in(guarded):
    station, browser = guarded
    answers = [sign_in(browser, "olga", "wrong horse battery") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 900
    assert sign_in(browser, "olga").status_code == 429
    assert sign_in(browser, "viktor").status_code == 303
    assert [line.action for line in tail(station.config.state, station.key, 50)] == ["login-refused"] * 5 + ["login"]
    assert all(line.facts["account"] in ("olga", "viktor") for line in tail(station.config.state, station.key, 50))


def test_what_is_typed_as_a_name_goes_nowhere(guarded):
    station, browser = guarded
    page = sign_in(browser, "Doe^Jane <b>")
    assert page.status_code == 401 and "Doe" not in page.text
    assert [line.facts for line in tail(station.config.state, station.key, 5)] == [{"account": ""}]


def test_a_form_that_is_too_large_is_refused(guarded):
    _, browser = guarded
    assert browser.post("/sign-in", content=b"a=" + b"x" * 70_000, headers={
        "content-type": "application/x-www-form-urlencoded"}).status_code == 413  # fmt: skip
    assert browser.post("/sign-in", data={f"a{n}": "" for n in range(3000)}).status_code == 400


def test_damaged_accounts_let_nobody_in(guarded):
    station, browser = guarded
    accounts_file(station.config.state).write_text("{")
    answer = browser.get("/")
    assert answer.status_code == 503 and "hscc-edge accounts add" in answer.text


def test_alarms_and_the_insecure_door_are_on_the_first_page(station, tmp_path):
    found = filled.copied(station, tmp_path)
    dicom = replace(found.config.dicom, host="0.0.0.0", insecure=True)
    found = replace(found, config=replace(found.config, dicom=dicom, reserve_mib=1 << 40))
    with filled.client(found) as browser:
        page = browser.get("/").text
        for word in ("dead letter", "The disk is full", "heartbeat has stopped", "insecure = true"):
            assert word in page, word
        assert "insecure = true" in browser.get("/studies").text


def test_every_kind_of_event_has_words():
    assert {*KINDS} <= {*words.EVENTS}
    assert words.title_of("surprise", {"why": "none"}) == ("surprise", "why none")
    assert words.title_of("received", {"door": "stow"}) == ("First byte", "by STOW-RS")
