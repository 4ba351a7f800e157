"""One layer's problem in the two-sided metric, with what every structure needs, computed once and when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.features import Features, InputMoments
from hscc_edge.compress.moments import Moments, merge
from hscc_edge.compress.problem import Settings
from hscc_edge.compress.regions import inside
from hscc_edge.compress.spectrum import (
    Spectrum,
    dual_spectrum,
    moments_spectrum,
    sample_spectrum,
    total_moments,
)
from hscc_edge.compress.statistics import LayerStatistics
from hscc_edge.errors import extra
from hscc_edge.model.plan import Box, LayerPlan

with extra("workstation"):
    import torch
    from torch import nn


@dataclass
class Solved:
    """A dense layer, its statistics, and what was derived from them so far.

    Attributes:
        inputs: second moments of the layer's input, where a structure asked for them.
        features: reduced features with their measured moments, by structure.
        splits: nested guillotine splits of the map, found once.
    """

    dense: nn.Module
    shape: LayerShape
    statistics: LayerStatistics
    settings: Settings
    inputs: InputMoments | None = None
    features: dict[str, list[Features]] = field(default_factory=dict)
    splits: list[tuple[Box, ...]] | None = None
    _last: tuple[Box, Moments] | None = None
    _spectra: dict[Box, Spectrum] = field(default_factory=dict)
    _whole: Spectrum | None = None
    _total: Moments | None = None

    @property
    def matrix(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W (m, n) and the bias (m,) in float64."""
        return factors.matrix_of(self.dense)

    @property
    def whole(self) -> Spectrum:
        """The spectrum of the whole map."""
        if self._whole is None:
            entry, damping = self.statistics, self.settings.damping
            if entry.samples is not None:
                self._whole = sample_spectrum(entry.samples, damping)
            elif entry.dual:
                self._whole = dual_spectrum(self.total, entry.images, self.matrix[0], damping)
            else:
                self._whole = moments_spectrum(self.total, entry.images, damping)
        return self._whole

    @property
    def total(self) -> Moments:
        """The moments of the whole map, about its one mean."""
        if self._total is None:
            self._total = total_moments(self.statistics)
        return self._total

    @property
    def has_regions(self) -> bool:
        """Whether the layer's map was measured in several cells."""
        return len(self.statistics.cells) > 1

    def moments(self, box: Box) -> Moments:
        """The moments of a union of cells; the last one is kept, since a search for splits asks for very many."""
        if self._last is None or self._last[0] != box:
            cells = [self.statistics.cells[index] for index in inside(box, self.statistics.boxes)]
            self._last = (box, merge(*cells))
        return self._last[1]

    def spectrum(self, box: Box) -> Spectrum:
        """The spectrum of a region by itself."""
        if box not in self._spectra:
            self._spectra[box] = moments_spectrum(self.moments(box), self.statistics.images, self.settings.damping)
        return self._spectra[box]


@dataclass(frozen=True, slots=True)
class Structure:
    """One way to factorise a layer.

    Attributes:
        options: what it offers for a layer, with the predicted loss of each; () where it does not apply.
        fill: writes the weights of one option into its module.
        features: the reduced features that a second pass must measure first; None where none is needed.
    """

    options: Callable[[Solved], Sequence[Option]]
    fill: Callable[[nn.Module, Solved, LayerPlan], None]
    features: Callable[[Solved], list[Features]] | None = None
