"""What a cohort is and what is wrong with it, as a page: counts, splits, plots, a contact sheet, faults, subgroups."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hscc_edge.data import page
from hscc_edge.data.cohort import Cohort, read_facts
from hscc_edge.data.cohort_plots import grey_values, patients
from hscc_edge.data.cohort_sample import contact_sheet, sample
from hscc_edge.data.lock import faults_of, read_lock
from hscc_edge.data.split import SPLITS
from hscc_edge.data.subgroups import SMALL, subgroups
from hscc_edge.errors import extra

with extra("workstation"):
    from markupsafe import Markup

ADVICE = {
    "files that cannot be read": "fetch them again, or leave them out and import again",
    "files that have changed": "put the files back, or import again if the change is meant",
    "classes missing in a split": "add patients of that class, or split afresh with larger shares",
    "patients in two splits": "split afresh: a patient is then on one side",
    "groups of equal pictures across splits": "import with --drop-duplicates, or leave the copies out",
    "groups of near duplicates across splits": "leave them out (cohort clean), or split afresh with --together",
}
LEFT_OUT_ADVICE = {
    "no label": "add them to the labels, or leave it so",
    "contradicting labels": "have the labels read again by an expert",
    "no PatientID": 'restore it, or say patient = "study" in the spec if a study is a patient',
    "another file has its SOP Instance UID": "ask the sender which file is right",
}
PLOTTED = ("age_band", "sex", "field_strength_t")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and what to do about it."""

    text: str
    advice: str


def render(cohort: Cohort, check: Mapping[str, Any] | None, conditions: Mapping[str, str]) -> str:
    """HTML with inline style, SVG and pictures; a few images of each class are decoded, one at a time.

    Patients are counted and never named; the pictures may show text that is burnt into them.

    Args:
        check: plain JSON of `cohort check`; None if it was not run, which the page says.
        conditions: name -> value: date, machine, versions.
    """
    cells, samples, facts = subgroups(cohort), sample(cohort), read_facts(cohort.root)
    left_out = facts.get("left_out", {})
    return page.render(
        "hscc_edge.data",
        "cohort.html.j2",
        {"words": lambda name: str(name).replace("_", " ")},
        cohort=cohort,
        counts=counts(cohort),
        classes=list(cohort.classes),
        totals={split: sum(item.split == split for item in cohort.instances) for split in SPLITS},
        patients=len({item.patient for item in cohort.instances}),
        studies=len({item.study for item in cohort.instances}),
        cells=cells,
        small=SMALL,
        plots={"patients": Markup(patients(cells, PLOTTED)), "grey": Markup(grey_values(samples))},
        sheet=base64.b64encode(contact_sheet(samples)).decode(),
        unreadable=sum(found.unreadable for found in samples),
        faults=None if check is None else [_fault(text) for text in faults_of(check)],
        warnings=list((check or {}).get("warnings", [])),
        left_out=[(reason, files, LEFT_OUT_ADVICE.get(reason, "")) for reason, files in left_out.items()],
        lock=read_lock(cohort.root),
        conditions=conditions,
    )


def counts(cohort: Cohort) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """(split, label -> (patients, images)) for every split that has images."""
    images = Counter((item.split, item.label) for item in cohort.instances)
    patients = Counter(
        (split, label) for split, label, _ in {(item.split, item.label, item.patient) for item in cohort.instances}
    )
    return [
        (split, {label: (patients[split, label], images[split, label]) for label in cohort.classes})
        for split in SPLITS
        if any(images[split, label] for label in cohort.classes)
    ]


def _fault(text: str) -> Fault:
    return Fault(text, ADVICE.get(text.split(" ", 1)[1], "look at cohort check"))
