"""Where each structure pays, in FLOPs and in milliseconds: every layer of a network by every structure.

    python benchmarks/structures.py --data DIR --out docs --network alexnet

A plan with all structures meets --ratio in each currency. For each layer: what each structure would cost, as a share of
the dense layer, at no more predicted loss than the plan accepts there. For the network: the plan's predicted loss with
one structure taken away, over that with all of them; 1.00 says that nothing is lost without it. Ends in
OUT/structures-NETWORK.json and .md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import brain_mri
from compress import ALL
from compress_rows import only

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.compress import compression, job, latency
from hscc_edge.compress.allocate import Budget, Option
from hscc_edge.compress.problem import LayerwiseProposal, Settings
from hscc_edge.data.cohort import read_cohort
from hscc_edge.errors import BudgetError
from hscc_edge.model.plan import Plan
from hscc_edge.validate.machine import machine_facts

WORDS = {"flops": "FLOPs", "latency": "milliseconds"}


def main() -> None:
    """Prepare once, time the candidates once, then plan with and without each structure."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--network", default="alexnet", help="a recipe calibration/recipes/brain-mri-NETWORK.toml")
    parser.add_argument("--ratio", type=float, default=6.0, help="how many times cheaper")
    arguments = parser.parse_args()
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache, arguments.network)
    proposal = timed(dense, cohort)
    found = {currency: judged(proposal, Budget(currency, arguments.ratio, "x")) for currency in WORDS}
    table = {**machine_facts(), "network": arguments.network, "ratio": arguments.ratio, "currencies": found}
    name = f"structures-{arguments.network}"
    durable.write_json(arguments.out / f"{name}.json", table)
    durable.write_text(arguments.out / f"{name}.md", markdown(table))


def timed(dense: Path, cohort: Path) -> LayerwiseProposal:
    """All structures of every layer, with their milliseconds on one thread of ONNX Runtime."""
    bundle = read_bundle(dense)
    calibration = compression.calibration_of(read_cohort(cohort), 512, 0)
    prepared = compression.prepare_bundle(bundle, calibration, "hscc", Settings(structures=tuple(ALL)))
    image = compression.first_image(prepared.problem.batches)["image"][0].numpy()
    graph = bundle.path("models/model.onnx").read_bytes()
    proposal = job.layerwise(prepared)
    return latency.time_candidates(prepared.problem, proposal, graph, image).apply(proposal)


def judged(proposal: LayerwiseProposal, budget: Budget) -> dict[str, Any]:
    """A plan with all structures, its layers by every structure, and the plans without one of them."""
    plan = proposal.plan(budget)
    layers = [
        {"name": layer.name, "shape": layer.shape, "chosen": layer.structure, "loss": layer.loss,
         "costs": costs(proposal.candidates[layer.name].options, layer.loss, budget.cost)}
        for layer in plan.layers if layer.name in proposal.candidates
    ]  # fmt: skip
    return {
        "loss": plan.loss,
        "layers": layers,
        "without": {name: without(proposal, budget, name, plan) for name in ALL},
    }


def costs(options: tuple[Option, ...], loss: float, cost: str) -> dict[str, float | None]:
    """The cheapest option of each structure within a loss, as a share of the dense layer; None if none is cheaper."""
    dense = options[0].cost(cost)
    found: dict[str, float | None] = {}
    for name in ALL:
        within = [option.cost(cost) for option in options if option.structure == name and option.loss <= loss]
        found[name] = min(within) / dense if within and min(within) < dense else None
    return found


def without(proposal: LayerwiseProposal, budget: Budget, name: str, plan: Plan) -> float | None:
    """The predicted loss with one structure taken away over that with all; None if the budget is then out of reach."""
    try:
        return only(proposal, [other for other in ALL if other != name]).plan(budget).loss / plan.loss
    except BudgetError:
        return None


def markdown(table: Mapping[str, Any]) -> str:
    """A block for each currency."""
    lines = [
        f"{table['network']}, brain MRI pictures, 512 calibration images; {table['machine']}; {table['date']}; "
        + ", ".join(f"{name} {value}" for name, value in table["versions"].items()) + ".",
    ]  # fmt: skip
    for currency, words in WORDS.items():
        found = table["currencies"][currency]
        left_out = " | ".join(ratio(found["without"][name]) for name in ALL)
        lines += [
            "", f"### {table['ratio']:g}x fewer {words}", "",
            f"| layer | weights | chosen | {' | '.join(ALL)} |", "|---" * (len(ALL) + 3) + "|",
            *(row(layer) for layer in found["layers"]),
            f"| loss without it, times that with all | | | {left_out} |",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def row(layer: Mapping[str, Any]) -> str:
    """Shares of the dense layer's cost; the cheapest in bold."""
    values = layer["costs"]
    least = min((value for value in values.values() if value is not None), default=None)
    cells = [
        "-" if values[name] is None else f"**{values[name]:.3f}**" if values[name] == least else f"{values[name]:.3f}"
        for name in ALL
    ]
    return f"| {layer['name']} | {layer['shape']} | {layer['chosen']} | {' | '.join(cells)} |"


def ratio(value: float | None) -> str:
    """A ratio of losses."""
    return "out of reach" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
