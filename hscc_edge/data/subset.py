"""Which images calibrate: by a method on features of them, stratified by class and spread over patients.

A method is a function of the pool's features and a random generator that gives a `Pick`: from the indices that may be
taken now, one, at each call. Classes, patients and near duplicates decide what may be taken, so that every method keeps
the same rules. Kept libraries of such choices take no rule of this kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.errors import CohortError, InputError

Indices = NDArray[np.intp]
Pick = Callable[[Indices], int]
Place = tuple[str, int]

CLIENTS = 2048
CANDIDATES = 256
RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Pool:
    """What a method sees of N images.

    Attributes:
        features: (N, F); a method that reads none is given (N, 0).
        strata: (N,), each image's class as a number from 0.
    """

    features: NDArray[np.float64]
    strata: Indices


@dataclass(frozen=True, slots=True)
class Relatives:
    """What near duplicates forbid.

    Attributes:
        groups: instance -> name of its group, of those that have a near duplicate; one of a group is taken at most.
        tested: instances that have one in the test split; none of them is taken.
    """

    groups: Mapping[Place, str] = field(default_factory=dict)
    tested: Collection[Place] = ()


ALONE = Relatives()


def random(pool: Pool, generator: np.random.Generator) -> Pick:
    """Each class in a random order. O(N)."""
    place = np.zeros(len(pool.strata))
    for stratum in range(int(pool.strata.max()) + 1):
        members = np.flatnonzero(pool.strata == stratum)
        place[members[generator.permutation(len(members))]] = np.arange(len(members))
    return lambda allowed: int(allowed[place[allowed].argmin()])


def importance(pool: Pool, generator: np.random.Generator) -> Pick:
    """At random, with a chance in proportion to the squared norm of the features. O(N F) once.

    The next is the largest of u^(1/weight), u uniform (Efraimidis and Spirakis 2006).
    """
    weight = (pool.features**2).sum(axis=1)
    key = np.log(generator.random(len(weight))) / np.maximum(weight, np.finfo(float).tiny)
    return lambda allowed: int(allowed[key[allowed].argmax()])


def k_centre(pool: Pool, generator: np.random.Generator) -> Pick:
    """The image farthest from all that are chosen; the first at random. O(N F) a pick.

    Without strata its covering radius is at most twice the least (Gonzalez 1985).
    """
    features = pool.features
    nearest = np.full(len(features), np.inf)

    def pick(allowed: Indices) -> int:
        far = nearest[allowed]
        index = int(allowed[far.argmax()] if np.isfinite(far).all() else generator.choice(allowed))
        np.minimum(nearest, ((features - features[index]) ** 2).sum(axis=1), out=nearest)
        return index

    return pick


def d_optimal(pool: Pool, generator: np.random.Generator) -> Pick:
    """Greedy for log det(sum x x^T + ridge I) of whitened features x; the first at random.

    The gain of x is log(1 + x^T A^-1 x), so that the image of greatest leverage is taken; as in a pivoted QR.
    O(N F + F^2) a pick, O(N F^2 + F^3) once.
    """
    x = whitened(pool.features)
    inverse = np.eye(x.shape[1]) / RIDGE
    leverage = (x**2).sum(axis=1) / RIDGE
    first = True

    def pick(allowed: Indices) -> int:
        nonlocal first, inverse
        index = int(generator.choice(allowed) if first else allowed[leverage[allowed].argmax()])
        first = False
        along = inverse @ x[index]
        scale = 1.0 + float(x[index] @ along)
        inverse -= np.outer(along, along) / scale
        np.maximum(leverage - (x @ along) ** 2 / scale, 0.0, out=leverage)
        return index

    return pick


def facility_location(pool: Pool, generator: np.random.Generator) -> Pick:
    """Greedy for the mean squared distance of the pool to the nearest chosen image. O(clients x candidates F) a pick.

    At most CLIENTS images of the pool are served, and for each pick a half of what is allowed, at most CANDIDATES, is
    looked at, both at random (stochastic greedy, Mirzasoleiman et al. 2015).
    """
    features = pool.features
    served = features[generator.permutation(len(features))[:CLIENTS]]
    cost = np.full(len(served), ((features - features.mean(axis=0)) ** 2).sum(axis=1).max() * 4.0)

    def pick(allowed: Indices) -> int:
        nonlocal cost
        some = generator.choice(allowed, min(CANDIDATES, (len(allowed) + 1) // 2), replace=False)
        left = np.minimum(squared_distances(features[some], served), cost)
        best = int(left.sum(axis=1).argmin())
        cost = left[best]
        return int(some[best])

    return pick


def herding(pool: Pool, generator: np.random.Generator) -> Pick:
    """Keeps the mean of the chosen features nearest to the pool's (kernel herding, Chen et al. 2010). O(N F) a pick.

    Each pick is of a random half of what is allowed, so that seeds differ.
    """
    features, target = pool.features, pool.features.mean(axis=0)
    norms = (features**2).sum(axis=1)
    total, taken = np.zeros_like(target), 0

    def pick(allowed: Indices) -> int:
        nonlocal total, taken
        some = generator.choice(allowed, (len(allowed) + 1) // 2, replace=False)
        apart = total / (taken + 1) - target
        score = 2.0 * (features[some] @ apart) / (taken + 1) + norms[some] / (taken + 1) ** 2
        index = int(some[score.argmin()])
        total, taken = total + features[index], taken + 1
        return index

    return pick


METHODS: dict[str, Callable[[Pool, np.random.Generator], Pick]] = {
    "random": random,
    "importance": importance,
    "k-centre": k_centre,
    "d-optimal": d_optimal,
    "facility-location": facility_location,
    "herding": herding,
}
BLIND = ("random",)  # these read no features


def whitened(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, F) -> (N, f <= F) of mean 0 and covariance I; directions of less than 1e-9 of the variance are left out."""
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = values > 1e-9 * max(float(values.sum()), np.finfo(float).tiny)
    return np.asarray(centred @ (vectors[:, kept] / np.sqrt(values[kept])))


def squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, F), (M, F) -> (N, M)."""
    found = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * (a @ b.T)
    return np.asarray(np.maximum(found, 0.0))


def check_choice(method: str) -> None:
    """Raise InputError if METHODS has no such method."""
    if method not in METHODS:
        raise InputError(f"the choice {method!r} is unknown: expected one of {', '.join(METHODS)}")


def pick_indices(
    pool: Pool,
    count: int,
    method: str,
    seed: int,
    *,
    patients: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> list[int]:
    """`count` indices of the pool, or fewer where near duplicates leave no more; the same for the same seed.

    Each class comes as often as its share allows. Of the patients of a class those are taken first of whom least was
    taken; of a group of near duplicates one image at most. Time is `count` picks, and O(N) a pick.

    Args:
        patients: (N,); empty if each image is its own patient.
        groups: (N,), near duplicates named alike; empty if there are none.

    Raises:
        InputError: if the method is unknown.
    """
    check_choice(method)
    size = len(pool.strata)
    pick = METHODS[method](pool, np.random.default_rng(seed))
    patient, group = _numbered(patients, size), _numbered(groups, size)
    of_patient, open_ = np.zeros(size, dtype=np.intp), np.ones(size, dtype=bool)
    share = np.bincount(pool.strata) / size
    taken = np.zeros(len(share), dtype=np.intp)
    chosen: list[int] = []
    while len(chosen) < count and open_.any():
        held = np.bincount(pool.strata[open_], minlength=len(share)) > 0
        stratum = int(np.where(held, share * (len(chosen) + 1) - taken, -np.inf).argmax())
        allowed = np.flatnonzero(open_ & (pool.strata == stratum))
        seen = of_patient[patient[allowed]]
        index = pick(allowed[seen == seen.min()])
        open_[group == group[index]] = False
        of_patient[patient[index]] += 1
        taken[stratum] += 1
        chosen.append(index)
    return chosen


def _numbered(names: Sequence[str], size: int) -> Indices:
    """Equal names as equal numbers below `size`; of no names each another."""
    return np.unique(np.asarray(names), return_inverse=True)[1] if len(names) else np.arange(size)


def choose(
    cohort: Cohort,
    count: int,
    seed: int,
    *,
    method: str = "random",
    features: NDArray[np.float64] | None = None,
    stratify: bool = True,
    kin: Relatives = ALONE,
) -> Cohort:
    """`count` instances in the order of choice; the same for the same seed, in whatever order the cohort's table is.

    Args:
        features: (N, F), a row an instance in the cohort's order; None for a method that reads none.
        stratify: each class as often as its share allows; else all are one.
        kin: near duplicates; equal files are always such.

    Raises:
        CohortError: if `count` is below 1 or above what the cohort has to choose from.
        InputError: if the method is unknown, or reads features and was given none.
    """
    check_choice(method)
    size = len(cohort.instances)
    free = [index for index in range(size) if place(cohort.instances[index]) not in kin.tested]
    order = sorted(free, key=lambda index: place(cohort.instances[index]))
    items = [cohort.instances[index] for index in order]
    if features is None and method not in BLIND:
        raise InputError(f"the method {method!r} chooses by features and was given none: give a model")
    table = np.zeros((size, 0)) if features is None else np.asarray(features, dtype=np.float64)[order]
    strata = [cohort.label_index(item) if stratify else 0 for item in items]
    named = [kin.groups.get(place(item), _content(item)) for item in items]
    if not 1 <= count <= len(set(named)):
        raise CohortError(
            f"{count} calibration images were asked for: the cohort has {len(set(named))} to choose from, near "
            "duplicates counted once"
        )
    pool = Pool(table, np.asarray(strata, dtype=np.intp))
    chosen = pick_indices(pool, count, method, seed, patients=[item.patient for item in items], groups=named)
    return dataclasses.replace(cohort, instances=tuple(items[index] for index in chosen))


def distinct(cohort: Cohort) -> int:
    """How many images of the cohort have contents of their own."""
    return len({_content(item) for item in cohort.instances})


def _content(instance: Instance) -> str:
    """Alike for equal files; a file whose digest is not known stands for itself."""
    return f"{instance.digest or instance.file} {instance.frame}"


def place(instance: Instance) -> Place:
    """Names an instance within its cohort, in the order of files and their frames."""
    return instance.file, int(instance.frame or 0)


def refuse_overlap(chosen: Cohort, whole: Cohort) -> None:
    """Refuse calibration images on which figures would be taken too.

    Raises:
        CohortError: if a patient, an image or a file's content is in `chosen` and in the test split of `whole`.
    """
    shared = [f"{number} {name}" for name, number in overlap(chosen, whole).items() if number]
    if shared:
        raise CohortError(
            f"the calibration images share {', '.join(shared)} with the test split: figures taken on it would be too "
            "good; run hscc-edge cohort check and mend the splits"
        )


def overlap(chosen: Cohort, whole: Cohort) -> dict[str, int]:
    """How many patients, images (SOP Instance UIDs) and file contents are in `chosen` and in the test split."""
    held_out = [item for item in whole.instances if item.split == "test"]
    kinds = {"patients": "patient", "images": "sop", "contents": "digest"}
    return {
        name: len(({getattr(a, key) for a in chosen.instances} & {getattr(b, key) for b in held_out}) - {""})
        for name, key in kinds.items()
    }
