"""Tallies: whatever is done to the tables, they say what a count of every row says."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hscc_edge.serve import instances, outbox
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.tallies import COUNTED, by_state, recount, tally

STATEMENTS = (
    "INSERT OR IGNORE INTO studies (uid, key, first_byte, last_received, last_tick) VALUES ('1.{n}', 'k{n}', 0, 0, 0)",
    "INSERT OR IGNORE INTO instances (id, sop, sop_class, digest, series, study, file, bytes, door, state, received) "
    "VALUES ({n}, '2.{n}', '3', 'd', '4', '1.{n}', 'f{n}', {n}00, 'dimse', 'received', 0)",
    "UPDATE instances SET state = 'reported' WHERE id = {n}",
    "UPDATE instances SET removed = 5.0 WHERE id = {n}",
    "UPDATE instances SET removed = NULL, file = 'g{n}', bytes = 7 WHERE id = {n}",
    "INSERT OR IGNORE INTO reports (id, sop, study, model, digest, content, result, current, created) "
    "VALUES ({n}, '5.{n}', '1.{n}', 'm', 'd', x'00', '', 1, 0)",
    "UPDATE reports SET current = 0 WHERE id = {n}",
    "INSERT OR IGNORE INTO deliveries (id, report, destination, form, state) "
    "VALUES ({n}, {n}, 'pacs', 'sr', 'pending')",
    "UPDATE deliveries SET state = 'delivered' WHERE id = {n}",
    "DELETE FROM instances WHERE id = {n}",
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(STATEMENTS), st.integers(1, 4)), max_size=40))
def test_tallies_are_counts(tmp_path_factory, steps):
    journal = Journal(tmp_path_factory.mktemp("tallies") / "journal.sqlite")
    with journal.transaction() as db:
        for statement, number in steps:
            db.execute(statement.format(n=number))
    counted = recount(journal)
    assert {what: tally(journal, what) for what in COUNTED} == counted
    assert instances.counts(journal) == dict(journal.read("SELECT state, COUNT(*) FROM instances GROUP BY state"))
    assert outbox.counts(journal) == dict(journal.read("SELECT state, COUNT(*) FROM deliveries GROUP BY state"))
    journal.close()


def test_what_is_rolled_back_is_not_counted(tmp_path: Path):
    journal = Journal(tmp_path / "journal.sqlite")
    try:
        with journal.transaction() as db:
            db.execute(STATEMENTS[0].format(n=1))
            raise KeyError
    except KeyError:
        pass
    assert by_state(journal, "studies") == {}
    journal.close()
