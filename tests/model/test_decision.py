"""From logits to a decision: what is fitted, what is doubted, and what is asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from hscc_edge.errors import ConfigError
from hscc_edge.model.decision import Rule, decide, parse_rule, question
from hscc_edge.model.head import Head, energy, probabilities

SOFTMAX = Head("softmax", ("a", "b", "c"))
ROWS = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=4)


@given(ROWS, st.floats(0.2, 5))
@settings(deadline=None, max_examples=40)
def test_a_temperature_divides_the_logits_and_keeps_the_label_of_one_image(rows, temperature):
    logits = np.array(rows[:1], dtype=np.float32)
    plain, cooled = (
        decide(Rule("image"), SOFTMAX, logits),
        decide(Rule("image", temperature=temperature), SOFTMAX, logits),
    )
    np.testing.assert_allclose(cooled.probabilities, softmax(logits.astype(float) / temperature, axis=1)[0], rtol=1e-6)
    best = max(plain.probabilities)
    assert cooled.label == plain.label or sum(np.isclose(value, best) for value in plain.probabilities) > 1


@given(ROWS)
@settings(deadline=None, max_examples=40)
def test_free_energy_is_that_published_and_alike_for_a_sigmoid_seen_as_two_classes(rows):
    logits = np.array(rows, dtype=np.float64)
    np.testing.assert_allclose(energy(SOFTMAX, logits), -logsumexp(logits, axis=1))
    one = Head("single_logit", ("no", "yes"))
    pair = np.stack([-logits[:, 0] / 2, logits[:, 0] / 2], axis=1)
    np.testing.assert_allclose(energy(one, logits[:, :1]), energy(Head("softmax", ("no", "yes")), pair), atol=1e-12)
    np.testing.assert_allclose(probabilities(one, logits[:, :1]), softmax(pair, axis=1), atol=1e-12)


def test_a_case_over_the_energy_limit_gets_no_decision_but_its_probabilities():
    logits = np.array([[4.0, 1.0, 0.0]], dtype=np.float32)
    limit = float(energy(SOFTMAX, logits)[0])
    assert decide(Rule("image", energy_limit=limit), SOFTMAX, logits).label == "a"
    found = decide(Rule("image", energy_limit=limit - 0.01), SOFTMAX, logits)
    assert found.label is None and len(found.probabilities) == 3 and "free energy over the limit" in found.reason


def test_a_doubtful_case_gets_no_decision():
    logits = np.array([[1.0, 0.9, 0.8]], dtype=np.float32)
    found = decide(Rule("image", least_probability=0.5), SOFTMAX, logits)
    assert found.label is None and "less than the probability 0.5" in found.reason
    assert decide(Rule("image", least_probability=0.3), SOFTMAX, logits).label == "a"


def test_a_rule_survives_json_and_what_was_fitted_is_not_the_question():
    rule = Rule("study", "top-k", 2, 3, 0.4, {"a": 0.2}, 1.7, -3.0)
    assert parse_rule(rule.to_json()) == rule
    assert Rule("image").to_json() == {"unit": "image", "aggregate": "mean", "k": 1, "minimum_images": 1}
    assert question(rule.to_json()) == Rule("study", "top-k", 2, 3, 0.4, {"a": 0.2}).to_json()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"unit": "image", "temperature": 0}, "temperature = 0: expected a number over 0"),
        ({"unit": "image", "operating_points": {"a": 1.2}}, "a = 1.2: expected a probability"),
        ({"unit": "image", "least_probability": -0.1}, "least_probability = -0.1: expected a probability"),
        ({"unit": "image", "threshold": 0.5}, "unknown key 'threshold'"),
    ],
)
def test_a_wrong_rule_is_refused(raw, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_rule(raw)
