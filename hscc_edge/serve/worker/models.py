"""Models: bundles installed under the state directory, of which one a name is active and one may be a shadow.

A switch is one journal transaction that raises a generation number; the worker looks at that between studies, so that
a study ends with the model that it began with. The bundle of the configuration is only the first one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.errors import BundleError, ConfigError, InputError
from hscc_edge.serve.config import ServedModel
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.instances import NO_RESULT, RECEIVED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station
from hscc_edge.serve.timeline import note
from hscc_edge.serve.worker.reference import tested
from hscc_edge.validate.pack.signature import FOLDER, MANIFEST, require_newer, require_trusted, trusted_keys

# Beside the active one: never active yet; a candidate; active before; gone back from.
ACTIVE, INSTALLED, SHADOW, RETIRED, WITHDRAWN = "active", "installed", "shadow", "retired", "withdrawn"
GENERATION = "models.generation"
FAILED = "failed: "
COLUMNS = "digest, name, version, folder, state, reason, since"


@dataclass(frozen=True, slots=True)
class Model:
    """One installed bundle.

    Attributes:
        folder: where it lies in the state directory.
        reason: why it is withdrawn.
        since: when it came into this state, in seconds since 1970; later states have later times.
    """

    digest: str
    name: str
    version: int
    folder: str
    state: str
    reason: str | None
    since: float


def models(journal: Journal) -> list[Model]:
    """Every installed bundle, by name and time."""
    return [Model(*row) for row in journal.read(f"SELECT {COLUMNS} FROM models ORDER BY name, since")]


def find(journal: Journal, name: str, state: str) -> Model | None:
    """The newest bundle of a name in a state."""
    rows = journal.read(
        f"SELECT {COLUMNS} FROM models WHERE name = ? AND state = ? ORDER BY since DESC LIMIT 1", (name, state)
    )
    return Model(*rows[0]) if rows else None


def named(journal: Journal, digest: str) -> Model:
    """The bundle whose digest begins so.

    Raises:
        InputError: if there is none, or several.
    """
    found = [model for model in models(journal) if digest and model.digest.startswith(digest)]
    if len(found) != 1:
        raise InputError(f"{len(found)} installed models have a digest that begins with {digest!r}: see models list")
    return found[0]


def generation(journal: Journal) -> int:
    """Rises with every change of what is active or a shadow."""
    return int(journal.fact(GENERATION) or 0)


def load(station: Station, model: Model) -> Bundle:
    """An installed bundle, its digests and its signature checked anew.

    Raises:
        BundleError: if it was altered, or is signed by no trusted key.
    """
    bundle = read_bundle(station.config.state / model.folder)
    if bundle.digest != model.digest:
        raise BundleError(f"the model {model.name} was altered in the state directory: install its bundle again")
    _require_signature(station, bundle.root)
    return bundle


def install(station: Station, journal: Journal, source: Path, name: str = "", state: str = INSTALLED) -> Model:
    """Verify a bundle, copy it into the state directory, test it there, and record it; it is not active yet.

    A bundle that is installed already is verified and tested, and stays what it is. Another install is waited for.

    Args:
        name: "" for the only model of the configuration, or the bundle's own name where it has several.
        state: what it is to be at first.

    Raises:
        BundleError: if it is altered, not signed by a trusted key, or no newer than what was installed before.
        EngineError: if the self-test fails.
    """
    handle = os.open(station.config.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return _install(station, journal, source, name, state)
    finally:
        os.close(handle)


def _install(station: Station, journal: Journal, source: Path, name: str, state: str) -> Model:
    bundle = read_bundle(source)
    _require_signature(station, source)
    chosen = name or default_name(station, bundle)
    known = [model for model in models(journal) if model.digest == bundle.digest]
    if known and known[0].name != chosen:
        raise BundleError(
            f"this bundle is installed as the model {known[0].name!r}: give each name a bundle of its own"
        )
    if not known:
        require_newer(chosen, bundle.spec.version, bundle.digest, _last(journal, chosen))
    folder = f"models/{bundle.digest}"
    _copy(bundle, station.config.state / folder)
    try:
        tested(station, read_bundle(station.config.state / folder))
    except BaseException:
        if not known:
            shutil.rmtree(station.config.state / folder)
        raise
    crash_point("model-installed")
    if known:
        return known[0]
    with journal.transaction() as db:
        db.execute(
            f"INSERT INTO models ({COLUMNS}) VALUES (?, ?, ?, ?, ?, NULL, ?)",
            (bundle.digest, chosen, bundle.spec.version, folder, INSTALLED, time.time()),
        )
        if state == SHADOW:
            _end_shadow(db, chosen)
        _set(db, bundle.digest, state)
        _next_generation(db)
    return named(journal, bundle.digest)


def activate(journal: Journal, digest: str) -> Model:
    """Make an installed bundle the active one of its name, in one transaction.

    Raises:
        InputError: if its version is lower than the active one's: only a roll-back goes back.
    """
    model = named(journal, digest)
    old = find(journal, model.name, ACTIVE)
    if old is not None and old.digest == model.digest:
        return model
    if old is not None and model.version < old.version:
        raise InputError(
            f"{model.name} {model.digest[:12]} has version {model.version}, version {old.version} is active: go back "
            "with hscc-edge models rollback, or install a newer version"
        )
    with journal.transaction() as db:
        if old is not None:
            _set(db, old.digest, RETIRED)
        _set(db, model.digest, ACTIVE)
        _next_generation(db)
        note(db, None, "activated", model=model.name, digest=model.digest[:12])
    crash_point("model-switched")
    return named(journal, model.digest)


def roll_back(journal: Journal, name: str, reason: str) -> Model | None:
    """Bring back what was active before, in one transaction; None if there was nothing.

    Studies that failed with the model that is left are due again.
    """
    new, old = find(journal, name, ACTIVE), find(journal, name, RETIRED)
    if old is None:
        return None
    with journal.transaction() as db:
        if new is not None:
            _set(db, new.digest, WITHDRAWN, reason)
            _open_failed(db, new.digest)
        _set(db, old.digest, ACTIVE)
        _next_generation(db)
        note(db, None, "rolled-back", model=name, digest=old.digest[:12], reason=reason)
    crash_point("model-switched")
    return named(journal, old.digest)


def set_shadow(journal: Journal, name: str, digest: str | None) -> Model | None:
    """Let an installed bundle see each study beside the active one, or none.

    Raises:
        InputError: if that is the active one.
    """
    model = named(journal, digest) if digest else None
    if model is not None and model.state == ACTIVE:
        raise InputError(f"{model.name} {model.digest[:12]} is active: choose another bundle as its shadow")
    with journal.transaction() as db:
        _end_shadow(db, name)
        if model is not None:
            _set(db, model.digest, SHADOW)
        _next_generation(db)
    return named(journal, model.digest) if model is not None else None


def ensure(station: Station, journal: Journal) -> list[Model]:
    """The active model of every name of the configuration, in its order; its bundle is installed if there is none yet.

    Raises:
        ConfigError: if two have one name, or a route names another.
        HsccError: as `install` does.
    """
    (station.config.state / "models").mkdir(mode=0o700, exist_ok=True)
    names = [name_of(item) for item in station.config.model]
    _check_names(station, names)
    found = []
    for name, item in zip(names, station.config.model, strict=True):
        if (active := find(journal, name, ACTIVE)) is None:
            active = activate(journal, install(station, journal, item.bundle, name).digest)
        if item.shadow is not None:
            _ensure_shadow(station, journal, name, item.shadow)
        found.append(active)
    return found


def name_of(item: ServedModel) -> str:
    """A model's name, its bundle's own where the configuration gives none."""
    return item.name or read_bundle(item.bundle, verify=False).spec.name


def default_name(station: Station, bundle: Bundle) -> str:
    """The name that a bundle is for: the only one, or the one that is the bundle's own.

    Raises:
        InputError: if there are several, and none is.
    """
    names = [name_of(item) for item in station.config.model]
    if len(names) == 1:
        return names[0]
    if bundle.spec.name in names:
        return bundle.spec.name
    raise InputError(f"the bundle is named {bundle.spec.name!r}: expected one of {', '.join(names)}; give --name")


def _check_names(station: Station, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are named {name!r}: give each a name of its own in its [[model]]")
    for route in station.config.route:
        if unknown := sorted(set(route.models) - set(names)):
            raise ConfigError(f"a route names the model {unknown[0]!r}: expected one of {', '.join(names)}")


def _ensure_shadow(station: Station, journal: Journal, name: str, source: Path) -> None:
    digest = read_bundle(source, verify=False).digest
    if any(model.digest == digest for model in models(journal)):
        return
    install(station, journal, source, name, SHADOW)


def _require_signature(station: Station, root: Path) -> None:
    if station.config.trusted_keys is not None:
        require_trusted(root, trusted_keys(station.config.trusted_keys, root_owned=True))


def _last(journal: Journal, name: str) -> tuple[int, str] | None:
    found = [(model.version, model.digest) for model in models(journal) if model.name == name]
    return max(found, default=None)


def _copy(bundle: Bundle, target: Path) -> None:
    """The bundle's files, its manifest and its signatures, whole and on disk, or nothing."""
    if target.is_dir() and not _whole(target, bundle.digest):
        shutil.rmtree(target)
    if target.is_dir():
        _add_signatures(bundle.root, target)
        return
    for stray in target.parent.glob(".*"):  # what an install that was killed has left
        shutil.rmtree(stray)
    with durable.new_directory(target) as draft:
        for name in (*bundle.files, MANIFEST):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / name, draft / name)
        _add_signatures(bundle.root, draft)
        if read_bundle(draft).digest != bundle.digest:
            raise BundleError(f"the bundle {bundle.root} changed while it was installed: install it again")


def _whole(target: Path, digest: str) -> bool:
    try:
        return read_bundle(target).digest == digest
    except BundleError:
        return False


def _add_signatures(source: Path, target: Path) -> None:
    for path in (source / FOLDER).glob("*.json"):
        durable.write_bytes(target / FOLDER / path.name, path.read_bytes())


def _set(db: sqlite3.Connection, digest: str, state: str, reason: str | None = None) -> None:
    db.execute(
        "UPDATE models SET state = ?, reason = ?, since = MAX(?, (SELECT MAX(since) FROM models) + 0.001) "
        "WHERE digest = ?",
        (state, reason, time.time(), digest),
    )


def _end_shadow(db: sqlite3.Connection, name: str) -> None:
    for (digest,) in db.execute("SELECT digest FROM models WHERE name = ? AND state = ?", (name, SHADOW)).fetchall():
        _set(db, digest, INSTALLED)


def _next_generation(db: sqlite3.Connection) -> None:
    db.execute(
        "INSERT INTO facts VALUES (?, '1') ON CONFLICT DO UPDATE SET value = CAST(value AS INTEGER) + 1", (GENERATION,)
    )


def _open_failed(db: sqlite3.Connection, digest: str) -> None:
    db.execute(
        "UPDATE instances SET state = ?, reason = NULL WHERE state = ? AND reason LIKE ? AND removed IS NULL "
        "AND study IN (SELECT study FROM observations WHERE digest = ? AND failed IS NOT NULL)",
        (RECEIVED, NO_RESULT, f"{FAILED}%", digest),
    )
