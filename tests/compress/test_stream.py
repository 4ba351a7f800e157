"""Streams without labels: patients apart, augmented anew each pass, the same from the same seed."""

import dataclasses

import pytest
import torch

from hscc_edge.compress.stream import streams
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import CohortError

PREPROCESS = parse_preprocess(
    [
        {"name": "percentile", "lower": 1.0, "upper": 99.0},
        {"name": "resize", "height": 64, "width": 64},
        {"name": "channels", "count": 1},
        {"name": "normalise", "mean": [0.3], "std": [0.25]},
    ]
)


def images_of(batches) -> torch.Tensor:
    passed = list(batches())
    assert all(batch.keys() == {"image"} for batch in passed)
    return torch.cat([torch.as_tensor(batch["image"]) for batch in passed])


def test_patients_apart_and_augmented_anew(phantom):
    train = phantom.select("train")
    learnt, judged = streams(train, PREPROCESS, batch_size=16, held_out=7)
    first, second, aside = images_of(learnt), images_of(learnt), images_of(judged)
    assert len(aside) == 6 and len(first) == len(second) == len(train.instances) - 6
    assert not torch.equal(first, second)
    assert torch.equal(aside, images_of(judged))
    again, _ = streams(train, PREPROCESS, batch_size=16, held_out=7)
    assert torch.equal(first, images_of(again))


@pytest.mark.parametrize("held_out", [1, 1000])
def test_something_is_left_on_both_sides(phantom, held_out):
    train = phantom.select("train")
    learnt, judged = streams(train, PREPROCESS, held_out=held_out)
    assert 3 <= len(images_of(judged)) <= max(3, len(train.instances) // 8)
    assert len(images_of(learnt)) + len(images_of(judged)) == len(train.instances)


def test_one_patient_is_too_few(phantom):
    patient = phantom.instances[0].patient
    alone = dataclasses.replace(phantom, instances=tuple(i for i in phantom.instances if i.patient == patient))
    with pytest.raises(CohortError, match="has 1 patient"):
        streams(alone, PREPROCESS)
