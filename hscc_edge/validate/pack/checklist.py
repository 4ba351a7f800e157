"""Reporting checklists: STARD-AI, CLAIM, TRIPOD+AI, filled where recorded results fill them; the rest is the site's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import hscc_edge
from hscc_edge.errors import ConfigError
from hscc_edge.validate.pack import words
from hscc_edge.validate.pack.contents import Contents
from hscc_edge.validate.pack.site import TO_FILL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOOL, SITE, OPEN = "filled from records", "answered by the site", TO_FILL
Fill = Callable[[Contents], str]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a checklist: its number there, our words for it, the answer and where the answer is from."""

    number: str
    text: str
    answer: str
    status: str


@dataclass(frozen=True, slots=True)
class Checklist:
    """A checklist with its source, where its own wording stands."""

    name: str
    title: str
    source: str
    items: tuple[Item, ...]

    @property
    def open(self) -> int:
        """How many items are for the site to fill."""
        return sum(item.status == OPEN for item in self.items)


def checklists(contents: Contents) -> list[Checklist]:
    """All of them; the site's own answer goes before the tool's.

    Raises:
        ConfigError: if the site answers an item that there is not.
    """
    raw = tomllib.loads(files("hscc_edge.validate.pack").joinpath("checklists.toml").read_text(encoding="utf-8"))
    _check_answers(contents, raw)
    return [_checklist(name, item, contents) for name, item in raw.items()]


def _checklist(name: str, raw: Mapping[str, Any], contents: Contents) -> Checklist:
    answers = contents.site.answers.get(name, {})
    return Checklist(
        name,
        raw["title"],
        raw["source"],
        tuple(_item(number, text, fill, answers, contents) for number, text, fill in raw["items"]),
    )


def _item(number: str, text: str, fill: str, answers: Mapping[str, str], contents: Contents) -> Item:
    if number in answers:
        return Item(number, text, answers[number], SITE)
    if fill in CARD_FILLS and CARD_FILLS[fill] in contents.site.card:
        return Item(number, text, contents.site.card[CARD_FILLS[fill]], SITE)
    answer = FILLS[fill](contents) if fill in FILLS else ""
    return Item(number, text, answer, TOOL if answer else OPEN)


def _check_answers(contents: Contents, raw: Mapping[str, Any]) -> None:
    for name, answers in contents.site.answers.items():
        if name not in raw:
            raise ConfigError(f"the site answers the checklist {name!r}: expected one of {', '.join(raw)}")
        numbers = {item[0] for item in raw[name]["items"]}
        if unknown := sorted(answers.keys() - numbers):
            raise ConfigError(f"the site answers item {unknown[0]!r} of {name}, which has none: see checklists.json")


def _validation(contents: Contents) -> Mapping[str, Any]:
    found = contents.one("validation")
    return found if isinstance(found, dict) else {}


def _cohort(contents: Contents) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _validation(contents).get("cohort", {})
    return found


def _model(contents: Contents) -> str:
    spec = contents.bundle.spec
    shape = " x ".join(map(str, spec.input_shape))
    return (
        f"{spec.network['name']}, input {shape}, {spec.head['kind']} over {len(spec.labels)} classes. "
        + words.summary(contents.bundle)
    )


def _training(contents: Contents) -> str:
    facts = contents.bundle.spec.training
    return "; ".join(f"{key}: {value}" for key, value in facts.items() if not isinstance(value, (dict, list)))


def _selection(contents: Contents) -> str:
    spec = contents.bundle.spec
    if spec.calibration is None:
        return ""
    return (
        f"Compressed with {spec.calibration.get('images', '?')} calibration images of the training split (cohort "
        f"{str(spec.calibration.get('cohort', ''))[:12]}); parent bundle {str(spec.parent)[:12]}."
    )


def _sample(contents: Contents) -> str:
    cohort = _cohort(contents)
    return (
        f"{cohort['cases']} cases of {cohort['patients']} patients; whether that suffices: see the report's power"
        if cohort
        else ""
    )


def _classes(contents: Contents) -> str:
    per_class = _cohort(contents).get("per_class", {})
    return "Cases by class: " + ", ".join(f"{label} {count}" for label, count in per_class.items()) if per_class else ""


def _performance(contents: Contents) -> str:
    found = _validation(contents)
    if not found:
        return ""
    shares = [
        f"{name}: accuracy {_share(found[key]['accuracy'])}"
        for name, key in (("compressed", "candidate_figures"), ("original", "reference_figures"))
        if "accuracy" in found.get(key, {})
    ]
    return "; ".join(shares)


def _share(raw: Mapping[str, Any]) -> str:
    if raw.get("value") is None or raw.get("low") is None:
        return "no case"
    return f"{100 * raw['value']:.1f} % (95 % interval {100 * raw['low']:.1f} to {100 * raw['high']:.1f})"


def _disjoint(contents: Contents) -> str:
    lock = contents.one("lock") if len(contents.of("lock")) == 1 else None
    if lock is None:
        return ""
    check = lock["check"]
    near = check["duplicates"].get("near", {}).get("across_splits", "not looked for")
    return (
        f"By patient: {check['patients_in_two_splits']} patients in two splits; equal pictures across splits: "
        f"{check['duplicates']['exact']['across_splits']}, near duplicates across splits: {near}."
    )


def _software(contents: Contents) -> str:
    found = _validation(contents).get("conditions", {})
    if not found:
        return ""
    versions = ", ".join(f"{name} {value}" for name, value in found.get("versions", {}).items())
    return f"{found.get('machine', '')}; Python {found.get('python', '')}, {versions}; {found.get('runtime_name', '')}"


def _undecided(contents: Contents) -> str:
    found = _validation(contents)
    if not found:
        return ""
    return (
        f"Cases without a decision count as wrong: {found['candidate_figures'].get('undecided')} (compressed), "
        f"{found['reference_figures'].get('undecided')} (original)."
    )


def _failures(contents: Contents) -> str:
    paired = _validation(contents).get("comparison")
    if not paired:
        return ""
    return (
        f"Cases that only the original decides rightly: {paired['only_reference']}; only the compressed one: "
        f"{paired['only_candidate']}. Each case stands in the validation record under its pseudonym."
    )


def _recorded(kind: str, sentence: str) -> Fill:
    return lambda contents: sentence if contents.of(kind) else ""


def _validated(sentence: str) -> Fill:
    return _recorded("validation", sentence)


def _steps(contents: Contents) -> str:
    return "; ".join(
        " ".join([str(step["name"]), *(f"{key}={value}" for key, value in step.items() if key != "name")])
        for step in contents.bundle.spec.preprocess
    )


def _cutoffs(contents: Contents) -> str:
    rule = contents.bundle.spec.decision
    aggregate = rule.get("aggregate", "mean")
    return f"The label of the largest probability; one decision a {rule.get('unit')}, {aggregate} of its images."


def _flow(contents: Contents) -> str:
    cohort = _cohort(contents)
    if not cohort:
        return ""
    return (
        f"{cohort['images']} images, {cohort['cases']} cases, {cohort['patients']} patients in the test split; what "
        "was left out at import: see the cohort's report"
    )


CARD_FILLS = {"intended": "intended_use", "users": "users", "limits": "limitations", "source": "training_data"}
FILLS: dict[str, Fill] = {
    "title": lambda contents: f"Evidence on {contents.bundle.spec.name}, a deep-learning classifier; its accuracy",
    "summary": _validated("The report's first page"),
    "objective": _validated("Whether the compressed classifier decides as well as its original, case by case"),
    "design": _validated("Retrospective: the images were recorded before the classifiers ran"),
    "eligibility": _recorded("lock", "What the cohort holds, by its lock; the site's rules: its cohort spec"),
    "source": lambda contents: str(_cohort(contents).get("source", "")),
    "software": _software,
    "preprocessing": _steps,
    "model": _model,
    "training": _training,
    "cutoffs": _cutoffs,
    "blind": _validated("A program: it read the images alone, labels were compared afterwards"),
    "statistics": _validated("As the report says under 'How this was measured'; versions in the record"),
    "undecided": _undecided,
    "subgroups": lambda contents: "The report's subgroups" if _validation(contents).get("groups") else "",
    "sample": _sample,
    "flow": _flow,
    "characteristics": _recorded("lock", "Images by split and class in the lock; subgroups in the cohort's report"),
    "classes": _classes,
    "crosstab": _validated("The report's confusion matrices"),
    "performance": _performance,
    "limits": _validated("What the report says under 'What this does not show'; the site's own are its own to add"),
    "availability": lambda contents: (
        f"hscc-edge {hscc_edge.__version__}, Apache-2.0; the model: this bundle, under its LICENSE; data: with the site"
    ),
    "audit": _validated("Every case's decision stands in the validation record, signed and digested in this pack"),
    "subsets": _selection,
    "deidentified": _validated("Cases and patients stand under keyed hashes; no identifier is in this pack"),
    "partitions": _disjoint,
    "disjoint": _disjoint,
    "selection": _selection,
    "ensemble": lambda contents: "None: one network",
    "metrics": _validated("Accuracy and its kin by class, agreement, divergence, latency: the report"),
    "robustness": _recorded("robustness", "The report's robustness section"),
    "explained": _recorded("flips", "Maps of the cases that the two decide differently: the sheet of hscc-edge flips"),
    "failures": _failures,
    "predictors": lambda contents: "The image's pixels alone, after the preprocessing above",
    "updating": _recorded("calibration", "Temperature scaling fitted on the calibration split: the report"),
    "ood": _recorded("calibration", "The limit of familiarity beyond which a case gets no decision, if one was fitted"),
}  # fmt: skip
