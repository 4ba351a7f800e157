"""The paired difference against published examples, its own inversion, and what several cases a patient do to it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paired_candidates import Design, draw, newcombe, table
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as peer
from type_one import effects, rejects

from hscc_edge.errors import InputError
from hscc_edge.validate.noninferiority import judge, sentence
from hscc_edge.validate.paired import Pairs, critical, interval, mcnemar, p_above, p_below, pairs, tango
from hscc_edge.validate.power import Shares, cases_needed, power, smallest_margin
from hscc_edge.validate.resampling import clusters

Z = float(norm.ppf(0.975))
COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300)).filter(lambda row: sum(row) > 0)


@pytest.mark.parametrize(
    ("gain", "loss", "cases", "low", "high"),
    [
        (12, 2, 50, 0.0611, 0.3447),  # Newcombe's own spreadsheet of Tango's interval, its example
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850, their example of airway responsiveness
        (1, 7, 21, -0.517, -0.026),
    ],
)
def test_tango_is_as_published(gain, loss, cases, low, high):
    found = tango(gain, loss, cases, Z)
    digits = 4 if cases == 50 else 3
    assert [round(float(value), digits) for value in found] == [low, high]


def test_newcombe_is_as_published():
    """The data cavo_2012 of the R package contingencytables and what its test of chapter 8 expects."""
    low, high = newcombe(59, first=6, second=16, neither=80)
    assert (round(-high, 4), round(-low, 4)) == (-0.1186, -0.0046)


def test_mcnemar_is_as_published():
    """Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91, table 2: 0.0703 and 0.0391."""
    exact, mid = mcnemar(7, 1)
    assert (round(exact, 4), round(mid, 4)) == (0.0703, 0.0391)
    assert mcnemar(0, 0) == (1.0, 1.0)
    for loss, gain in ((3, 9), (5, 5), (0, 1), (20, 4)):
        assert mcnemar(loss, gain)[0] == pytest.approx(peer([[0, loss], [gain, 0]], exact=True).pvalue)
        assert mcnemar(loss, gain)[1] < mcnemar(loss, gain)[0]


def test_no_discordant_case_leaves_a_width():
    """Tango 1998, appendix: z^2 / (n + z^2)."""
    low, high = interval(Pairs(0, 0, 157, 157))
    assert high == pytest.approx(Z**2 / (157 + Z**2)) and low == pytest.approx(-high)


@given(COUNTS)
@settings(deadline=None, max_examples=25)
def test_the_interval_is_antisymmetric_and_its_ends_are_where_the_test_turns(row):
    gain, loss, _ = row
    found = Pairs(gain, loss, sum(row), sum(row))
    low, high = interval(found)
    back = interval(Pairs(loss, gain, sum(row), sum(row)))
    assert -1 <= low <= found.difference <= high <= 1 and low < high
    assert (back[0], back[1]) == (pytest.approx(-high), pytest.approx(-low))
    if low > -1 + 1e-6:
        assert p_above(found, low - 1e-6) < 0.025 < p_above(found, min(low + 1e-6, 1))
    if high < 1 - 1e-6:
        assert p_below(found, high + 1e-6) < 0.025 < p_below(found, high - 1e-6)


def test_cases_of_one_patient_that_err_together_count_little():
    lost = np.arange(100) < 10
    first, second = np.ones(100, bool), ~lost
    apart = pairs(first, second, clusters([str(i) for i in range(100)]))
    together = pairs(first, second, clusters([str(i // 10) for i in range(100)]))
    assert apart.design_effect == 1 and not apart.clustered
    assert together.design_effect > 5 and critical(together) > critical(apart)
    assert interval(together)[0] < -0.25 < interval(apart)[0]
    assert interval(pairs(first, second, clusters(["one"] * 100))) == (-1.0, 1.0)


def test_the_drawn_design_effect_is_the_one_under_test():
    design = Design((5,) * 20 + (3,) * 7, 0.3, 0.05, 0.1)
    drawn = draw(design, 8, np.random.default_rng(0))
    cases = design.clusters()
    one_by_one = [table(design, one, cases) for one in drawn]
    assert effects(design, drawn) == pytest.approx([found.design_effect for found in one_by_one])
    assert drawn[:, :, 0].sum(axis=1).tolist() == [found.gain for found in one_by_one]


def test_a_verdict_needs_the_whole_interval():
    words = {judge(Pairs(gain, loss, 400, 400), 0.03).word: (gain, loss) for gain, loss in ((8, 8), (4, 12), (2, 60))}
    assert list(words) == ["NON-INFERIOR", "INCONCLUSIVE", "INFERIOR"]
    better = judge(Pairs(60, 2, 400, 400), 0.03)
    assert better.superior and "superior as well" in sentence(better)
    lacking = judge(Pairs(4, 12, 400, 400), 0.03)
    assert f"needs about {lacking.cases_needed}" in sentence(lacking)
    hopeless = judge(Pairs(6, 20, 400, 400), 0.03)
    assert hopeless.cases_needed is None and "more cases alone would not help" in sentence(hopeless)
    for margin in (0.0, 1.0, -0.02):
        with pytest.raises(InputError, match="clinically acceptable"):
            judge(Pairs(1, 1, 10, 10), margin)


def test_one_picture_of_49_is_no_gain():
    """43 of 49 against 44 of 49, the published figures of the method: any split of them says nothing."""
    for both in range(42, 44):
        found = Pairs(44 - both, 43 - both, 49, 49)
        assert judge(found, 0.02).word == "INCONCLUSIVE" and not judge(found, 0.02).superior


def test_type_one_error_of_independent_cases_is_exact_and_small():
    for cases in (49, 157, 300):
        for margin in (0.02, 0.05):
            errors = [rejects(cases, extra / 2, margin + extra / 2, margin) for extra in (0.0, 0.02, 0.1)]
            assert max(errors) < 0.0255
    assert rejects(157, 0.05, 0.05, 0.1) > 0.6


def test_power_is_near_the_exact_one_and_its_inverses_agree():
    for cases, margin in ((300, 0.05), (700, 0.03), (1500, 0.02)):
        assert power(Shares(0, 0.05), margin, cases) == pytest.approx(rejects(cases, 0.025, 0.025, margin), abs=0.05)
    shares = Shares(0.0, 0.06, 1.8)
    needed = cases_needed(shares, 0.03)
    assert power(shares, 0.03, needed) == pytest.approx(0.8, abs=0.002)
    assert smallest_margin(shares, needed) == pytest.approx(0.03, rel=0.01)
    assert cases_needed(Shares(-0.04, 0.06), 0.03) is None
    assert smallest_margin(Shares(0.0, 0.9, 40.0), 3) is None
