"""The self-test: a bundle's reference set through its network, on this device, as it would be served."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError
from hscc_edge.export.reference import read_reference, self_test
from hscc_edge.lean import trim
from hscc_edge.serve.results.sr import check_codes
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker.inference import Inference, InferenceFailed, inference_of

LOG = logging.getLogger(__name__)
Opening = Callable[[Station, Bundle], Inference]


def tested(station: Station, bundle: Bundle) -> None:
    """Open a bundle's network in a process of its own, test it, and close it.

    Raises:
        BundleError: if the bundle has no reference set, or lacks a code that a report needs.
        EngineError: if the network does not open, or the test fails.
    """
    check_codes(bundle)
    opened(station, bundle).close()


def opened(station: Station, bundle: Bundle, opening: Opening = inference_of) -> Inference:
    """A bundle's network in a process of its own that has passed the test; raises as `tested` does."""
    inference = opening(station, bundle)
    try:
        _test(station, bundle, inference)
    except BaseException:
        inference.close()
        raise
    trim()
    return inference


def _test(station: Station, bundle: Bundle, inference: Inference) -> None:
    started = inference.start()  # before the reference is read, which that process would hold as well
    try:
        difference = self_test(read_reference(bundle), inference.infer, station.config.work.precision)
    except InferenceFailed as error:
        raise EngineError(f"the self-test of {bundle.root} failed: {error}; see hscc-edge doctor") from error
    LOG.info(
        "event=self_test model=%s difference=%.3g load_s=%.2f first_inference_ms=%.1f",
        bundle.digest[:12], difference, started["load_s"], started["first_inference_ms"],
    )  # fmt: skip
