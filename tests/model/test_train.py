"""What a user is told before a training that would be needlessly slow."""

import dataclasses

import pytest
import torch

from hscc_edge.model.recipe import Schedule
from hscc_edge.model.train import slow_bf16


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [({"avx512_bf16": False, "amx_bf16": False}, True), ({"avx512_bf16": True, "amx_bf16": False}, False), ({}, False)],
)
def test_bf16_that_is_only_emulated_is_told(capabilities, slow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    schedule = Schedule(epochs=1, precision="bf16")
    assert slow_bf16(schedule) is slow and not slow_bf16(dataclasses.replace(schedule, precision="fp32"))
