"""Recall: each current report of a bad model is taken back by one that says so, and its study done anew by choice."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from hscc_edge.errors import InputError
from hscc_edge.serve.audit import audit
from hscc_edge.serve.instances import NO_RESULT, RECEIVED, REPORTED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.outbox import withhold
from hscc_edge.serve.results.evaluation import RECALL
from hscc_edge.serve.results.report import withdrawal
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import StaleReport, supersede
from hscc_edge.serve.timeline import note
from hscc_edge.serve.worker.models import ACTIVE, find

SHORTEST_PREFIX = 6
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Affected:
    """A current report of a model, and whether its study's files are all here to be worked on again.

    Attributes:
        key: the study's keyed hash.
        created: when the report was made, in seconds since 1970.
    """

    key: str
    model: str
    digest: str
    created: float
    here: bool
    study: str = field(repr=False)
    sop: str = field(repr=False)


def affected(journal: Journal, model: str) -> list[Affected]:
    """The current reports of a model, named by its name or by the beginning of its bundle's digest.

    Raises:
        InputError: if it stands for several bundles.
    """
    prefix = len(model) >= SHORTEST_PREFIX and set(model) <= set(string.hexdigits)
    rows = journal.read(
        "SELECT s.key, r.model, r.digest, r.created, NOT EXISTS (SELECT 1 FROM instances AS i WHERE i.study = r.study "
        "AND i.removed IS NOT NULL), r.study, r.sop FROM reports AS r JOIN studies AS s ON s.uid = r.study "
        "WHERE r.current = 1 AND r.recalled = 0 AND (r.model = ? OR (? AND substr(r.digest, 1, ?) = ?)) ORDER BY r.id",
        (model, prefix, len(model), model.lower()),
    )
    found = [Affected(key, name, digest, at, bool(here), *uids) for key, name, digest, at, here, *uids in rows]
    if len(bundles := sorted({item.digest[:12] for item in found})) > 1:
        raise InputError(f"{model!r} stands for {len(bundles)} bundles: give the digest of one, {' or '.join(bundles)}")
    return found


def active_now(journal: Journal, reports: Sequence[Affected]) -> bool:
    """Whether the recalled bundle is the one that new studies get."""
    found = find(journal, reports[0].model, ACTIVE) if reports else None
    return found is not None and found.digest == reports[0].digest


def recall(station: Station, journal: Journal, model: str, *, again: bool = False) -> list[Affected]:
    """Take back every current report of a model; returns them. What changes meanwhile is looked at anew.

    Args:
        again: mark the studies whose files are here for work with the model that is active now.

    Raises:
        InputError: if `model` stands for several bundles, or is active and `again` would use it once more.
    """
    done: list[Affected] = []
    for _ in range(ROUNDS):
        reports = affected(journal, model)
        if again and active_now(journal, reports):
            raise InputError(
                f"the model {model!r} is the active one and would look at its studies again: install another one, or "
                "go back, with hscc-edge models"
            )
        if not reports:
            break
        done += [item for item in reports if _take_back(station, journal, item, again=again and item.here)]
    audit(station, "recall", model=model, digest=done[0].digest if done else "", reports=len(done), again=again)
    return done


def _take_back(station: Station, journal: Journal, item: Affected, *, again: bool) -> bool:
    (content,) = journal.read("SELECT content FROM reports WHERE sop = ?", (item.sop,))[0]
    notice = withdrawal(station.config, item.model, item.digest, item.sop, bytes(content), RECALL)
    try:
        with journal.transaction() as db:
            supersede(db, item.study, notice)
            withhold(db, item.sop)
            db.execute("UPDATE reports SET recalled = 1 WHERE sop IN (?, ?)", (item.sop, notice.sop))
            note(db, item.study, "recalled", model=item.model, digest=item.digest[:12], again=again)
            if again:
                db.execute(
                    "UPDATE instances SET state = ?, reason = NULL WHERE study = ? AND state IN (?, ?)",
                    (RECEIVED, item.study, REPORTED, NO_RESULT),
                )
                db.execute("UPDATE studies SET attempts = 0, not_before = 0 WHERE uid = ?", (item.study,))
    except StaleReport:
        return False
    return True
