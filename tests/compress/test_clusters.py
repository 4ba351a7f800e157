"""Clusters: channels that co-activate go together, every channel once, none smaller than asked."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_edge.compress.clusters import coactivation_clusters


def test_planted_groups_are_found():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2000, 3, generator=generator)
    owners = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    x = sources[:, owners] * (1 + torch.arange(10)) + 0.1 * torch.randn(2000, 10, generator=generator)
    found = coactivation_clusters(torch.cov(x.T).double(), 3)
    assert set(found) == {(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)}


@given(channels=st.integers(1, 24), count=st.integers(1, 8), least=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_every_channel_once(channels, count, least, seed):
    x = torch.randn(50, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 0] = 1.0  # a channel that never varies
    found = coactivation_clusters(torch.cov(x.T, correction=0).reshape(channels, channels), count, least)
    assert sorted(channel for cluster in found for channel in cluster) == list(range(channels))
    assert len(found) <= count
    assert all(len(cluster) >= min(least, channels) for cluster in found)
