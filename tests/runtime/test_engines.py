"""The cache: what is active, what runs where, and the way back. Engines here are bytes, and nothing runs them."""

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError, InputError
from hscc_edge.runtime import engines
from hscc_edge.runtime.engines import EngineFacts, Host

ORIN = Host("tensorrt", "10.3.0", 12060, "Orin SM87", "MAXN")
PARITY = {"batches": {"1": {"images": 8, "top1_agreement": 1.0}}}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """What the cache asks of a bundle: its digest, and that of its graph."""
    return Bundle(Path("bundle"), spec=None, digest="b" * 64, files={"models/model.fp16.onnx": "a" * 64})


def graph_digest(bundle: Bundle, precision: str = "fp16") -> str:
    return bundle.files[f"models/model.{precision}.onnx"]


def put(cache: Path, bundle: Bundle, plan: bytes = b"plan", **changes: object) -> EngineFacts:
    """An engine in the cache that passed parity, as facts and bytes."""
    facts = EngineFacts(
        builder="tensorrt", version="10.3.0", device="Orin SM87", precision="fp16", max_batch=4, bytes=len(plan),
        half_layers=9, layers=9, inspected=True, executed=True, seconds=1.0, path="", onnx_sha256=graph_digest(bundle),
        sha256=hashlib.sha256(plan).hexdigest(), note="", cuda=12060, shape=(1, 64, 64), power_mode="MAXN",
        parity=PARITY,
    )  # fmt: skip
    facts = dataclasses.replace(facts, **changes)
    facts = dataclasses.replace(facts, path=str(engines.engine_path(cache, facts.key)))
    engines.write_engine(facts, plan)
    return facts


def opened(cache: Path, bundle: Bundle, host: Host = ORIN) -> tuple[EngineFacts, bytes]:
    return engines.open_active(bundle, "fp16", graph_digest(bundle), cache, host)


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engines.cache_directory() == tmp_path / "hscc_edge" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engines.cache_directory() == tmp_path / "home" / ".cache" / "hscc_edge" / "engines"


def test_an_engine_is_opened_once_it_is_active(bundle, tmp_path):
    facts = put(tmp_path, bundle)
    with pytest.raises(EngineError, match=r"holds no active fp16 engine of the bundle .* hscc-edge build BUNDLE"):
        opened(tmp_path, bundle)
    engines.activate(tmp_path, bundle, facts)
    assert opened(tmp_path, bundle) == (facts, b"plan")
    other = dataclasses.replace(bundle, digest="0" * 64)
    with pytest.raises(EngineError, match="holds no active"):
        opened(tmp_path, other)


def test_an_unverified_engine_is_never_activated(bundle, tmp_path):
    facts = put(tmp_path, bundle, parity=None, executed=False)
    with pytest.raises(EngineError, match="was not verified, so that it is not activated"):
        engines.activate(tmp_path, bundle, facts)
    with pytest.raises(EngineError, match="holds no active"):
        opened(tmp_path, bundle)


def test_an_engine_of_another_bundle_is_not_activated(bundle, tmp_path):
    with pytest.raises(InputError, match="built from another graph than any of"):
        engines.activate(tmp_path, bundle, put(tmp_path, bundle, onnx_sha256="0" * 64))


def test_rollback_goes_back_one_and_activate_forward_again(bundle, tmp_path):
    first, second = put(tmp_path, bundle), put(tmp_path, bundle, b"other", best_batch=2)
    for facts in (first, second):
        engines.activate(tmp_path, bundle, facts)
    assert opened(tmp_path, bundle)[0] == second
    assert engines.rollback(tmp_path, bundle, "fp16") == first == opened(tmp_path, bundle)[0]
    with pytest.raises(EngineError, match=r"1 fp16 engines .* were active .*: expected 2 or more to go back"):
        engines.rollback(tmp_path, bundle, "fp16")
    engines.activate(tmp_path, bundle, second)
    engines.activate(tmp_path, bundle, second)
    assert opened(tmp_path, bundle)[0] == second
    assert engines.rollback(tmp_path, bundle, "fp16") == first


def test_rollback_to_an_altered_engine_is_refused_and_changes_nothing(bundle, tmp_path):
    first, second = put(tmp_path, bundle), put(tmp_path, bundle, b"other", best_batch=2)
    for facts in (first, second):
        engines.activate(tmp_path, bundle, facts)
    Path(first.path).write_bytes(b"PLAN")
    with pytest.raises(EngineError, match="was altered"):
        engines.rollback(tmp_path, bundle, "fp16")
    put(tmp_path, bundle, b"built anew", parity=None)
    with pytest.raises(EngineError, match="was built anew and not verified since"):
        engines.rollback(tmp_path, bundle, "fp16")
    assert opened(tmp_path, bundle)[0] == second


@pytest.mark.parametrize("parity", [None, PARITY])
def test_an_active_engine_that_was_built_anew_must_be_verified_anew(parity, bundle, tmp_path):
    """TensorRT builds another engine under the same key each time."""
    engines.activate(tmp_path, bundle, put(tmp_path, bundle))
    put(tmp_path, bundle, b"built anew", parity=parity)
    with pytest.raises(EngineError, match="was built anew and not verified since"):
        opened(tmp_path, bundle)


def test_an_altered_active_engine_is_not_opened(bundle, tmp_path):
    facts = put(tmp_path, bundle)
    engines.activate(tmp_path, bundle, facts)
    Path(facts.path).write_bytes(b"PLAN")
    with pytest.raises(EngineError, match="was altered"):
        opened(tmp_path, bundle)


@pytest.mark.parametrize(
    ("changes", "host", "said"),
    [
        ({}, {}, ""),
        ({}, {"builder": "tensorrt_rtx"}, "built by tensorrt, and here is tensorrt_rtx"),
        ({}, {"version": "10.16.1"}, "built by TensorRT 10.3.0, and here is 10.16.1"),
        ({}, {"version": "10.2.0"}, "built by TensorRT 10.3.0, and here is 10.2.0"),
        ({"version_compatible": True}, {"version": "10.16.1", "cuda": 13020}, ""),
        ({"version_compatible": True}, {"version": "11.4.1"}, ""),
        ({"version_compatible": True}, {"version": "10.2.0"}, "built by TensorRT 10.3.0, and here is 10.2.0"),
        ({}, {"cuda": 13020}, "built with CUDA 12060, and here is 13020"),
        ({}, {"gpu": "Thor SM110"}, "built for Orin SM87, and here is Thor SM110"),
        ({"device": "SM86+SM89"}, {"gpu": "some card SM89"}, ""),
        ({"device": "SM86+SM89"}, {"gpu": "some card SM8"}, r"built for SM86\+SM89, and here is some card SM8"),
        ({}, {"gpu": None}, ""),
        ({}, {"power_mode": "15W"}, ""),
    ],
)
def test_which_engines_run_where(changes, host, said, bundle, tmp_path):
    facts, here = put(tmp_path, bundle, **changes), dataclasses.replace(ORIN, **host)
    engines.activate(tmp_path, bundle, facts)
    if not said:
        assert opened(tmp_path, bundle, here)[0] == facts
        assert engines.find_engine(tmp_path, facts.onnx_sha256, "fp16", here)[0] == facts
        return
    with pytest.raises(EngineError, match=f"does not run here .*{said}.*: run hscc-edge build"):
        opened(tmp_path, bundle, here)
    with pytest.raises(EngineError, match="holds no fp16 engine of this bundle that runs here"):
        engines.find_engine(tmp_path, facts.onnx_sha256, "fp16", here)


def test_another_power_mode_is_logged(bundle, tmp_path, caplog):
    engines.activate(tmp_path, bundle, put(tmp_path, bundle))
    with caplog.at_level(logging.WARNING, "hscc_edge"):
        opened(tmp_path, bundle)
        assert not caplog.messages
        opened(tmp_path, bundle, dataclasses.replace(ORIN, power_mode="15W"))
    assert len(caplog.messages) == 1 and "event=power_mode_changed" in caplog.text and "built_in=MAXN" in caplog.text


def test_the_newest_engine_is_found_to_measure(bundle, tmp_path):
    for age, batch in ((30, 4), (10, 1), (20, 2)):
        facts = put(tmp_path, bundle, best_batch=batch, parity=None)
        os.utime(facts.path, ns=(10**18 - age * 10**9,) * 2)
    found, plan = engines.find_engine(tmp_path, graph_digest(bundle), "fp16", ORIN)
    assert found.best_batch == 1 and plan == b"plan"
    assert [item.facts.best_batch for item in engines.list_engines(tmp_path)] == [4, 2, 1]


@pytest.mark.parametrize("junk", [b"{half", b"[1]", b"\xff\xfe", b"{}", b'{"engines": [1]}', b'{"engines": [{}]}'])
def test_a_record_that_cannot_be_read_activates_nothing(junk, bundle, tmp_path):
    engines.activate(tmp_path, bundle, put(tmp_path, bundle))
    (record,) = (tmp_path / "active").iterdir()
    record.write_bytes(junk)
    with pytest.raises(EngineError, match="holds no active"):
        opened(tmp_path, bundle)
    assert engines.list_engines(tmp_path)[0].active == ()


def test_the_record_names_no_place_and_no_bundle_but_its_digest(bundle, tmp_path):
    facts = put(tmp_path, bundle)
    engines.activate(tmp_path, bundle, facts)
    (record,) = (tmp_path / "active").iterdir()
    assert record.name == f"{bundle.digest}.fp16.json"
    assert json.loads(record.read_bytes()) == {"schema": 1, "engines": [{"key": facts.key, "sha256": facts.sha256}]}


def test_what_is_active_is_not_removed_and_what_is_removed_is_forgotten(bundle, tmp_path):
    first, second = put(tmp_path, bundle), put(tmp_path, bundle, b"other", best_batch=2)
    for facts in (first, second):
        engines.activate(tmp_path, bundle, facts)
    with pytest.raises(InputError, match=r"is active .*: roll back or activate another one first"):
        engines.remove_engine(tmp_path, second.key)
    assert engines.remove_engine(tmp_path, first.key[:8]) == Path(first.path)
    assert [item.key for item in engines.list_engines(tmp_path)] == [second.key]
    assert not list(tmp_path.glob(f"{first.key}*"))
    with pytest.raises(EngineError, match="1 fp16 engines"):
        engines.rollback(tmp_path, bundle, "fp16")
    for wrong in (first.key, "", "xyz"):
        with pytest.raises(InputError, match=r"engines of .* begin with .*: expected one"):
            engines.remove_engine(tmp_path, wrong)


def test_a_faulty_engine_is_listed_as_such(bundle, tmp_path):
    facts = put(tmp_path, bundle)
    Path(facts.path).write_bytes(b"PLAN")
    (item,) = engines.list_engines(tmp_path)
    assert item.facts is None and "was altered" in item.fault and item.key == facts.key
    assert engines.list_engines(tmp_path / "absent") == []
