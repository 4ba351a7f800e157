"""Whether labels can be told from what says nothing about disease: size, headers, file, borders, corners, greys.

Each family of features is given to a small model of its own. Where it does well, a classifier may have learned from the
same, and its accuracy elsewhere is not known (Geirhos et al. 2020; Zech et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from hscc_edge.data.facts import Facts, facts_of
from hscc_edge.errors import extra

FAMILIES = {
    "size": "rows, columns and their ratio",
    "file": "bytes, bytes a pixel and JPEG quantisation",
    "headers": "equipment, acquisition and encoding as the headers say",
    "borders": "the outermost pixels of each side",
    "corners": "the four corners, where text is burnt in",
    "histogram": "how often each grey occurs, without where",
}
FOLDS = 5
MINIMUM_CASES = 20  # of each class
MAXIMUM_CASES = 10_000
ALPHA = 0.01  # of the permutation test
MARGIN = 0.1  # above chance, which the interval's lower end must reach
NAMED = 0.8  # one-vs-rest AUC from which a class is named
CONFIDENCE, DRAWS = 0.95, 2000
SEGMENTS, BINS, CATEGORIES = 8, 32, 20
CUTS = 64  # values of a feature that are told apart: scikit-learn takes a weighted percentile for each
Features = dict[str, tuple[float | str, ...]]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What one family of features tells about the label.

    Attributes:
        verdict: "predicts", "no evidence" or "too few cases".
        cases: patients, or groups of duplicates, by label; each counts once.
        balanced_accuracy: mean recall of the classes, cross-validated.
        interval: of it, at CONFIDENCE (Jeffreys intervals of the recalls, combined by draws).
        p_value: of a permutation of the labels.
        auc: class -> area under the ROC curve against the rest.
    """

    family: str
    verdict: str
    cases: int
    chance: float
    balanced_accuracy: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    p_value: float = 1.0
    auc: Mapping[str, float] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the family tells apart from the rest."""
        named = tuple(label for label, area in (self.auc or {}).items() if area >= NAMED)
        return named if self.verdict == "predicts" else ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects."""
        head = {"verdict": self.verdict, "cases": self.cases, "chance": round(self.chance, 4)}
        if self.auc is None:
            return head
        return head | {
            "balanced_accuracy": round(self.balanced_accuracy, 4),
            "interval": [round(end, 4) for end in self.interval],
            "p_value": round(self.p_value, 5),
            "auc": {label: round(area, 4) for label, area in self.auc.items()},
            "classes": list(self.classes),
        }


def features(pixels: NDArray[np.float32], dataset: Dataset, size: int) -> Features:
    """Family -> numbers and texts of one picture; cost grows with rows x columns.

    Args:
        dataset: the file's, with its pixel data.
        size: of the file, in bytes.
    """
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)
    low, high = float(grey.min()), float(grey.max())
    place = (grey - low) / (high - low if high > low else 1.0)
    facts = facts_of(dataset)
    rows, columns = grey.shape
    return {
        "size": (rows, columns, rows / columns),
        "file": (size, size / grey.size, _quantisation(dataset)),
        "headers": _headers(facts),
        "borders": _borders(place),
        "corners": _corners(place),
        "histogram": (*(np.histogram(place, BINS, (0, 1))[0] / grey.size), low, high, float(grey.mean())),
    }


def find_shortcuts(
    rows: Sequence[Features],
    labels: Sequence[str],
    groups: Sequence[int],
    *,
    families: Iterable[str] = FAMILIES,
    seed: int = 0,
) -> tuple[Shortcut, ...]:
    """Judge each family: a small gradient boosting, cross-validated so that no group is on both sides of a fold.

    Args:
        groups: of each row; rows of one patient, or of duplicates, are one group.

    Time and memory grow with the rows, of which at most MAXIMUM_CASES are used.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    with extra("workstation"):
        import sklearn.ensemble  # noqa: F401
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(rows))[:MAXIMUM_CASES])
    names = np.array(labels)[chosen]
    owners = np.array(groups)[chosen]
    classes = sorted(set(labels))
    cases = {(owner, label) for owner, label in zip(owners.tolist(), names.tolist(), strict=True)}
    counts = [sum(label == own for _, own in cases) for label in classes]
    if len(classes) < 2 or min(counts) < MINIMUM_CASES:
        return tuple(Shortcut(name, "too few cases", len(cases), 1 / max(len(classes), 1)) for name in families)
    return tuple(
        _judge(name, _matrix([rows[index][name] for index in chosen]), names, owners, random) for name in families
    )


def _judge(
    family: str, table: NDArray[np.float64], names: NDArray[Any], owners: NDArray[Any], random: np.random.Generator
) -> Shortcut:
    classes, truth = np.unique(names, return_inverse=True)
    odds = _out_of_fold(table, truth, owners)
    _, case = np.unique(np.stack([owners, truth]), axis=1, return_inverse=True)
    summed = np.zeros((case.max() + 1, len(classes)))
    np.add.at(summed, case, odds)
    label = np.zeros(len(summed), dtype=np.int64)
    label[case] = truth
    share = summed / np.bincount(case)[:, None]
    guess = share.argmax(axis=1)
    score = _balanced(guess, label, len(classes))
    shuffled = [_balanced(guess, random.permutation(label), len(classes)) for _ in range(DRAWS - 1)]
    p_value = (1 + sum(value >= score for value in shuffled)) / DRAWS
    low, high = _interval(guess, label, len(classes), random)
    predicts = p_value <= ALPHA and low >= 1 / len(classes) + MARGIN
    return Shortcut(
        family=family,
        verdict="predicts" if predicts else "no evidence",
        cases=len(label),
        chance=1 / len(classes),
        balanced_accuracy=score,
        interval=(low, high),
        p_value=p_value,
        auc={str(name): _area(share[:, index], label == index) for index, name in enumerate(classes)},
    )


def _out_of_fold(
    table: NDArray[np.float64], truth: NDArray[np.int64], owners: NDArray[np.int64]
) -> NDArray[np.float64]:
    with extra("workstation"):
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import StratifiedGroupKFold
    found = np.zeros((len(table), truth.max() + 1))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(table, truth, owners):
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=10, early_stopping=False, class_weight="balanced",
            max_bins=CUTS, random_state=0,
        )  # fmt: skip
        model.fit(table[train], truth[train])
        found[np.ix_(test, model.classes_)] = model.predict_proba(table[test])
    return found


def _balanced(guess: NDArray[np.int64], label: NDArray[np.int64], classes: int) -> float:
    right = np.bincount(label[guess == label], minlength=classes)
    return float((right / np.maximum(np.bincount(label, minlength=classes), 1)).mean())


def _interval(
    guess: NDArray[np.int64], label: NDArray[np.int64], classes: int, random: np.random.Generator
) -> tuple[float, float]:
    """Of the mean recall, each recall drawn from its posterior under Jeffreys' prior (Brown, Cai, DasGupta 2001)."""
    right = np.bincount(label[guess == label], minlength=classes)
    wrong = np.bincount(label, minlength=classes) - right
    means = random.beta(right + 0.5, wrong + 0.5, (DRAWS, classes)).mean(axis=1)
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    score = _balanced(guess, label, classes)  # at 0 and 1 the posterior's quantiles leave it out
    return min(float(low), score), max(float(high), score)


def _area(share: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    with extra("workstation"):
        from sklearn.metrics import roc_auc_score
    return float(roc_auc_score(positive, share))


def _matrix(rows: Sequence[tuple[float | str, ...]]) -> NDArray[np.float64]:
    """Numbers as they are; a column with texts as one column for each of the most frequent of them.

    Columns of one value are left out; where nothing is left, there is one of zeros.
    """
    columns: list[Any] = []
    for column in zip(*rows, strict=True):
        if any(isinstance(value, str) for value in column):
            values, counts = np.unique([str(value) for value in column], return_counts=True)
            frequent = values[np.argsort(-counts, kind="stable")][:CATEGORIES]
            columns += [[str(value) == name for value in column] for name in frequent]
        else:
            columns.append(column)
    table = np.array(columns, dtype=np.float64)
    varied = [len(np.unique(column)) > 1 for column in table]  # NaN is one value
    return table[varied].T if any(varied) else np.zeros((len(rows), 1))


def _headers(facts: Facts) -> tuple[float | str, ...]:
    numbers = (
        facts.field_strength_t, facts.echo_time_ms, facts.repetition_time_ms, facts.kvp, facts.slice_thickness_mm,
        facts.frames, facts.bits_stored, facts.study_year,
    )  # fmt: skip
    texts = (
        facts.transfer_syntax, facts.photometric, facts.modality, facts.body_part, facts.laterality, facts.site,
        facts.scanner, facts.station, facts.protocol, facts.series_description, facts.orientation, str(facts.contrast),
        " ".join(facts.scanning_sequence), " ".join(facts.sequence_variant), " ".join(facts.convolution_kernel),
        " ".join(facts.image_type),
    )  # fmt: skip
    return tuple(np.nan if number is None else float(number) for number in numbers) + texts


def _quantisation(dataset: Dataset) -> float:
    """Mean entry of the first quantisation table of an encapsulated JPEG (ITU-T T.81 B.2.4.1), NaN for others."""
    if dataset.file_meta.get("TransferSyntaxUID") not in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return np.nan
    frame = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
    start = frame.find(b"\xff\xdb")
    wide = frame[start + 4] >> 4 if start >= 0 and len(frame) > start + 4 else 0
    raw = frame[start + 5 : start + 5 + (128 if wide else 64)] if start >= 0 else b""
    return float(np.frombuffer(raw, dtype=">u2" if wide else "u1").mean()) if len(raw) in (64, 128) else np.nan


def _borders(place: NDArray[np.float32]) -> tuple[float, ...]:
    """Mean and deviation of each eighth of the outermost 2 % of each side."""
    found = []
    for turned in (np.rot90(place, turn) for turn in range(4)):
        strip = turned[: max(1, len(turned) // 50)]
        for part in np.array_split(strip, min(SEGMENTS, strip.shape[1]), axis=1):
            found += [float(part.mean()), float(part.std())]
    return (*found, *(np.nan,) * (8 * SEGMENTS - len(found)))


def _corners(place: NDArray[np.float32]) -> tuple[float, ...]:
    """Mean, deviation, maximum, bright part and steepness of each corner's eighth of rows and columns."""
    found = []
    for turned in (np.rot90(place, turn) for turn in range(4)):
        part = turned[: max(2, turned.shape[0] // 8), : max(2, turned.shape[1] // 8)]
        steep = float(np.abs(np.diff(part, axis=1)).mean()) if part.shape[1] > 1 else 0.0
        found += [float(part.mean()), float(part.std()), float(part.max()), float((part > 0.5).mean()), steep]
    return tuple(found)
