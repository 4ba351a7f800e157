"""The record of who looked at the test set: whole lines under concurrent writers and after a torn write."""

import dataclasses
import multiprocessing

import pytest

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort
from hscc_edge.errors import CohortError
from hscc_edge.validate.uses import USES, read_uses, record, sentence, uses_of


@pytest.fixture
def cohort(phantom, tmp_path) -> Cohort:
    return dataclasses.replace(phantom, root=tmp_path)


def append(path, name):
    for number in range(25):
        durable.append_line(path, f"{name} {number} " + "x" * 5000)


def test_concurrent_writers_lose_nothing(tmp_path):
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(path, str(name))) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 100 and all(len(line) > 5000 for line in lines)
    for name in "0123":
        assert [line.split()[1] for line in lines if line[0] == name] == [str(number) for number in range(25)]


def test_uses_are_counted_by_split_and_name_nobody(cohort):
    for purpose, split in (("validate", "test"), ("compress", "val"), ("validate", "test")):
        seen = record(cohort.select(split), ("a" * 64, "b" * 64), purpose)
    assert [use.purpose for use in seen] == ["validate", "validate"] and len(read_uses(cohort.root)) == 3
    assert uses_of(cohort.root, ("val",))[0].digest == cohort.select("val").digest
    text = (cohort.root / USES).read_text()
    for item in cohort.instances:
        assert not any(secret in text for secret in (item.patient, item.study, item.series, item.sop, item.file))
    assert "use 2 of the split test; candidates so far: 1" in sentence(seen)
    for digest in "cdef":
        seen = record(cohort.select("test"), (digest * 64,), "validate")
    assert "has become a validation set" in sentence(seen)


def test_a_torn_line_is_cut_off_and_a_broken_one_told(cohort):
    part = cohort.select("test")
    record(part, ("a",), "validate")
    with (cohort.root / USES).open("a") as file:
        file.write('{"date": "2026')
    assert len(read_uses(cohort.root)) == 1
    assert len(record(part, ("b",), "validate")) == 2
    (cohort.root / USES).write_text("not JSON\n")
    with pytest.raises(CohortError, match=r"line 1 of .*uses.jsonl is malformed"):
        read_uses(cohort.root)
