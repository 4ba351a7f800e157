"""How well the predicted loss ranks plans: Spearman's correlation with the true KL over random plans, no refit.

    python benchmarks/loss_correlation.py --bundle DENSE --cohort COHORT --plans 100

Each plan draws one option a layer from those that no other beats in FLOPs and loss. Images come from the train split.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import islice
from pathlib import Path

import torch
from scipy.stats import spearmanr

from hscc_edge.bundle import read_bundle
from hscc_edge.compress import compression, job
from hscc_edge.compress.allocate import efficient
from hscc_edge.compress.problem import Settings, dense_option, layer_plan
from hscc_edge.data.cohort import read_cohort
from hscc_edge.model.head import kl
from hscc_edge.model.plan import Plan
from hscc_edge.validate.machine import machine_facts


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bundle, cohort = read_bundle(arguments.bundle), read_cohort(arguments.cohort)
    prepared = compression.prepare_bundle(bundle, compression.calibration_of(cohort, 512, 0), "hscc", Settings())
    proposal, problem = job.layerwise(prepared), prepared.problem
    batches = list(islice(problem.batches(), 4))
    (head,) = problem.heads

    def logits(network: torch.nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [network(batch["image"]) for batch in batches]

    reference, choice, pairs = logits(problem.network), random.Random(arguments.seed), []
    for _ in range(arguments.plans):
        layers = []
        for shape in problem.shapes:
            entry = proposal.candidates.get(shape.name)
            option = choice.choice(efficient(entry.options, "flops")) if entry else dense_option(shape)
            layers.append(layer_plan(shape, option, dense_option(shape)))
        plan = Plan("hscc", "random", tuple(layers))
        found = logits(prepared.build(plan, refit=False))
        values = [kl(head, a.numpy(), b.numpy()) for a, b in zip(reference, found, strict=True)]
        pairs.append((plan.loss, float(sum(v.sum() for v in values) / sum(len(v) for v in values))))
    rank = spearmanr([loss for loss, _ in pairs], [value for _, value in pairs])
    told = {"plans": len(pairs), "spearman": float(rank.statistic), "pairs": pairs, **machine_facts()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
