"""What pages ask of the journal: bounded, by an index, and no more of a long journal than of a short one."""

import re
import sqlite3

import filled
import pytest
from filled import uid

from hscc_edge.serve import instances, outbox, studies
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.web import views

PAGES = ("/", "/studies", "/outbox", "/models", "/charts", "/box", "/audit")


def test_a_search_that_went_far_enough_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "WINDOW", 2)
    monkeypatch.setattr(views, "WINDOWS", 2)
    found = filled.station(tmp_path)
    journal = found.journal()
    for number in range(1, 8):
        filled.add_study(found, journal, number, count=1)
    filled.finish(found, journal, 1)
    first = views.studies(journal, views.REPORTED, None, 5.0)
    second = views.studies(journal, views.REPORTED, first.older, 5.0)
    journal.close()
    assert first.cut and not first.rows and not second.cut
    assert [row.key for row in second.rows] == [found.who(uid(1))]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Every query that the pages ask, with its values, on journals of some and of many studies."""
    found = {}
    for count in (60, 3000):
        station = filled.station(tmp_path_factory.mktemp(f"of-{count}"))
        journal = station.journal()
        receipts = [
            instances.Receipt(f"{uid(n)}.1", filled.MR, f"{n:064d}", "1", uid(n), str(n), 9, "dimse", f"{n:012x}", 1.0)
            for n in range(count)
        ]
        instances.receive(journal, receipts)
        with journal.transaction() as db:
            for number in range(count - 8):
                report = studies.NewReport(
                    "brain", "d", f"r{number}", b"", {}, [outbox.NewDelivery(name, "f") for name in ("archive", "b")]
                )
                studies.supersede(db, uid(number), report)
                db.execute("UPDATE instances SET state = 'reported' WHERE study = ?", (uid(number),))
            db.execute("UPDATE deliveries SET state = 'delivered', ended = 2.0 WHERE id > 8 AND id % 2 = 0")
            db.execute("UPDATE deliveries SET state = 'dead' WHERE id <= 4")
        queries, read = [], Journal.read

        def reading(self, query, values=(), queries=queries, read=read):
            queries.append((query, tuple(values)))
            return read(self, query, values)

        with pytest.MonkeyPatch.context() as patch, filled.client(station) as browser:
            patch.setattr(Journal, "read", reading)
            for path in (*PAGES, "/studies?state=open", "/studies?state=dead", "/studies?state=no-result",
                         "/studies?state=reported", "/studies?key=00", f"/studies/{7:012x}"):  # fmt: skip
                assert browser.get(path).status_code == 200
        found[count] = journal, queries
    yield found
    for journal, _ in found.values():
        journal.close()


def steps(journal: Journal, query: str, values: tuple) -> int:
    """SQLite's virtual machine instructions that a query takes, in hundreds."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with sqlite3.connect(journal.path) as db:
        db.set_progress_handler(step, 100)
        db.execute(query, values).fetchall()
    db.close()
    return count


# Walks over so many rows and no more: `views.WINDOW` studies, `trends.MOST` of two days, `trends.LAST` reports,
# `views.MANY` open deliveries.
BOUNDED = (
    "ORDER BY last_received DESC LIMIT", "s.last_received >= ?", "CAST(last_received", "FROM reports ORDER BY",
    "COUNT(reason)",
)  # fmt: skip


def test_no_page_takes_longer_for_a_longer_journal(asked):
    (small, few), (large, many) = asked[60], asked[3000]
    cost = {query: steps(small, query, values) for query, values in few}
    grown = {query: (cost[query], steps(large, query, values)) for query, values in many if query in cost}
    assert len(grown) > 20
    slow = {
        query: costs for query, costs in grown.items()
        if costs[1] > 3 * costs[0] + 60 and not any(part in query for part in BOUNDED)
    }  # fmt: skip
    assert not slow


def test_every_query_goes_by_an_index(asked):
    journal, queries = asked[3000]
    small = {"facts", "counters", "models", "tallies", "w", "f", "c", "e"}
    for query in {query for query, _ in queries}:
        values = next(values for text, values in queries if text == query)
        for *_, plan in journal.read(f"EXPLAIN QUERY PLAN {query}", values):
            scanned = re.match(r"SCAN (\w+)(?! .*USING)", plan)
            bounded = scanned is None or scanned[1] in small or "LIMIT" in query
            assert bounded, (plan, query)
