"""Both classifiers on another machine: its own hscc-edge runs and times them, on files that are sent along.

The two bundles go as their configuration and graph, the part of the cohort as its tables and DICOM files, into a
private directory that is removed afterwards. The key of the pseudonyms and the record of uses stay here.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hscc_edge.bundle import Bundle
from hscc_edge.data.cache import file_digest
from hscc_edge.data.cohort import Cohort, write_cohort
from hscc_edge.data.subgroups import by_case
from hscc_edge.errors import CohortError, InputError, RemoteError
from hscc_edge.export.remote import Host, parcel, run_there
from hscc_edge.runtime import PRECISIONS, check_precision
from hscc_edge.validate.collect import (
    Collection,
    Conditions,
    check_alike,
    cohort_facts,
    parse_collection,
)
from hscc_edge.validate.predict import Case, check_fit
from hscc_edge.validate.predictions import Predictions, bundle_facts
from hscc_edge.validate.uses import record


def collect_there(
    host: Host, candidate: Bundle, reference: Bundle, part: Cohort, conditions: Conditions, purpose: str = "validate"
) -> Collection:
    """As `collect`, on `host`; the use is written down here, before it is known whether the host answers.

    Args:
        part: of one split.

    Raises:
        BundleError, CohortError: as `collect` does, or if a file of the cohort is missing or has changed.
        InputError: if the runtime needs torch.
        RemoteError: if the host fails, or answers for another cohort or other cases.
    """
    check_alike(candidate, reference)
    check_fit(reference, part)
    check_precision(conditions.precision)
    if conditions.runtime == "eager":
        raise InputError("the runtime eager needs torch and the weights, which are not sent: give another with --on")
    graph = [PRECISIONS[conditions.precision]]
    files = {**parcel(candidate, graph, "candidate"), **parcel(reference, graph, "reference"), **_sent(part)}
    uses = record(part, (candidate.digest, reference.digest), purpose)
    visit = run_there(host, files, [_words(part, conditions)])
    found = parse_collection(visit.content(0), f"the answer of {host.address}")
    if found.cohort.get("digest") != part.digest:
        raise RemoteError(f"{host.address} collected on another cohort than the one that was sent: try again")
    old, new = (
        _returned(host, said, bundle, part)
        for said, bundle in ((found.reference, reference), (found.candidate, candidate))
    )
    timing = found.timing
    if timing is not None:
        timing = {**timing, "bundles": [bundle_facts(reference), bundle_facts(candidate)]}
    return replace(
        found, reference=old, candidate=new, cohort=cohort_facts(part, old), uses=uses, timing=timing,
        columns=by_case(part, old.rule.unit), conditions={**found.conditions, "on": host.address},
    )  # fmt: skip


def _words(part: Cohort, asked: Conditions) -> list[str]:
    places = {"reference": "reference", "cohort": "cohort", "split": part.instances[0].split, "collect": "-"}
    values = {"runtime": asked.runtime, "precision": asked.precision, "threads": asked.threads,
              "seconds": asked.seconds}  # fmt: skip
    options = (f"--{name}={value}" for name, value in {**places, **values}.items())
    return ["validate", "candidate", *options]


def _sent(part: Cohort) -> dict[str, bytes | Path]:
    """A part of a cohort: its tables, without the pseudonyms' key, and its files, which must be those of the table."""
    with tempfile.TemporaryDirectory() as name:
        write_cohort(Path(name), replace(part, files=Path("files"), secret=b""))
        tables = {f"cohort/{path.name}": path.read_bytes() for path in Path(name).iterdir()}
    digests = {item.file: (part.path(item), item.digest) for item in part.instances}
    altered = [path for path, digest in digests.values() if not path.is_file() or digest not in ("", file_digest(path))]
    if altered:
        raise CohortError(
            f"{len(altered)} of {len(digests)} files of {part.root} are missing, or have changed since the cohort was "
            "made: hscc-edge cohort check names them; put them back"
        )
    return {**tables, **{f"cohort/files/{file}": path for file, (path, _) in digests.items()}}


def _returned(host: Host, found: Predictions, bundle: Bundle, part: Cohort) -> Predictions:
    """A host's answers about the bundle as it is here, its cases under the pseudonyms that they have here."""
    sent, uids = replace(part, secret=b""), part.cases(found.rule.unit)
    told = [(case.key, case.patient, case.label) for case in found.cases]
    if told != [(*_names(sent, uid, items[0].patient), items[0].label) for uid, items in uids.items()]:
        raise RemoteError(f"{host.address} answered for other cases than those that were sent: try again")
    pairs = zip(found.cases, uids.items(), strict=True)
    cases = (_renamed(case, *_names(part, uid, items[0].patient)) for case, (uid, items) in pairs)
    return replace(found, bundle=bundle_facts(bundle), cases=tuple(cases))


def _names(cohort: Cohort, uid: str, patient: str) -> tuple[str, str]:
    return cohort.pseudonym(uid), cohort.pseudonym(patient)


def _renamed(case: Case, key: str, patient: str) -> Case:
    return replace(case, key=key, patient=patient)
