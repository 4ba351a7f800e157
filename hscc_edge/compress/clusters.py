"""Clusters of input channels by co-activation: channels whose responses rise and fall together."""

from __future__ import annotations

from hscc_edge.errors import extra
from hscc_edge.model.plan import Clusters

with extra("workstation"):
    import torch
    from sklearn.cluster import AgglomerativeClustering


def coactivation_clusters(covariance: torch.Tensor, count: int, least: int = 1) -> Clusters:
    """Group channels by average linkage on 1 - |correlation|.

    Args:
        covariance: (C, C) of the channels' responses; a channel that never varies is like no other.
        count: clusters; fewer if there are fewer channels.
        least: channels a cluster must have; smaller ones join the cluster they co-activate with most.
    """
    size = len(covariance)
    if count <= 1 or size <= 1:
        return (tuple(range(size)),)
    similarity = _correlation(covariance).abs()
    model = AgglomerativeClustering(n_clusters=min(count, size), metric="precomputed", linkage="average")
    labels = model.fit_predict((1.0 - similarity).clamp_min(0).numpy())
    groups = [[i for i in range(size) if labels[i] == label] for label in sorted(set(labels))]
    return tuple(sorted(tuple(group) for group in _absorb(groups, similarity, least)))


def _correlation(covariance: torch.Tensor) -> torch.Tensor:
    scale = covariance.diagonal().clamp_min(0).sqrt()
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    found = covariance / torch.outer(safe, safe)
    found.fill_diagonal_(1.0)
    return found


def _absorb(groups: list[list[int]], similarity: torch.Tensor, least: int) -> list[list[int]]:
    groups = sorted(groups, key=len)
    while len(groups) > 1 and len(groups[0]) < least:
        small, rest = groups[0], groups[1:]
        near = max(range(len(rest)), key=lambda i: float(similarity[small][:, rest[i]].mean()))
        rest[near] = sorted(rest[near] + small)
        groups = sorted(rest, key=len)
    return groups
