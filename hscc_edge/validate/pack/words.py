"""The plan in words: which layer became what, and what that costs and saves."""

from __future__ import annotations

from dataclasses import dataclass

from hscc_edge.bundle import Bundle
from hscc_edge.model.plan import LayerPlan, Plan, parse_plan


@dataclass(frozen=True, slots=True)
class LayerWords:
    """One layer of the plan for a reader."""

    name: str
    was: str
    became: str
    flops: str
    parameters: str
    share: str


def plan_of(bundle: Bundle) -> Plan | None:
    """The bundle's plan; None if it is not compressed."""
    return None if bundle.spec.plan is None else parse_plan(bundle.spec.plan)


def summary(bundle: Bundle) -> str:
    """The whole plan in one sentence."""
    plan = plan_of(bundle)
    if plan is None:
        return f"The network {bundle.spec.network['name']} is not compressed."
    changed = [layer for layer in plan.layers if layer.structure != "dense"]
    folded = f" {len(plan.folded)} batch norms were folded into the convolution before them." if plan.folded else ""
    return (
        f"{len(changed)} of {len(plan.layers)} layers of {bundle.spec.network['name']} were replaced by the method "
        f"'{plan.method}' to the budget {plan.budget}: {_ratio(plan.dense_flops, plan.flops)} operations "
        f"({plan.dense_flops:,} to {plan.flops:,} an image) and {_ratio(plan.dense_params, plan.params)} "
        f"parameters ({plan.dense_params:,} to {plan.params:,}).{folded}"
    )


def layers(bundle: Bundle) -> list[LayerWords]:
    """Every layer of the plan in words, in the order in which they run."""
    plan = plan_of(bundle)
    if plan is None:
        return []
    total = plan.loss or 1.0
    return [
        LayerWords(
            name=layer.name,
            was=was(layer.shape),
            became=became(layer),
            flops=f"{layer.dense_flops:,} to {layer.flops:,}",
            parameters=f"{layer.dense_params:,} to {layer.params:,}",
            share=f"{100 * layer.loss / total:.1f} %",
        )
        for layer in plan.layers
    ]


def was(shape: str) -> str:
    """What a layer of this shape is, such as "64x3x11x11"."""
    outputs, *rest = shape.split("x")
    if len(rest) < 2:
        return f"linear layer, {rest[0] if rest else '?'} inputs, {outputs} outputs"
    return f"convolution, {rest[0]} channels to {outputs}, kernel {' x '.join(rest[1:])}"


def became(layer: LayerPlan) -> str:
    """What a layer was replaced by."""
    ranks, outputs = layer.ranks, layer.shape.partition("x")[0]
    kernel = " x ".join(layer.shape.split("x")[2:]) or "linear"
    places = len(layer.regions)
    match layer.structure:
        case "dense":
            return f"as it was{': ' + layer.reason if layer.reason else ''}"
        case "one-region":
            return f"two layers: {kernel} to {ranks[0]} channels, then 1 x 1 to {outputs}" if kernel != "linear" else (
                f"two linear layers by way of {ranks[0]} values"
            )  # fmt: skip
        case "shared-reduce":
            return (
                f"one {kernel} layer to {ranks[0]} channels for the whole map, then in each of {places} regions a "
                f"1 x 1 layer of its own to {outputs}"
            )
        case "own-factors":
            return (
                f"in each of {places} regions two layers of its own, to {_listed(ranks)} channels and then to {outputs}"
            )
        case "clustered":
            groups = sum(len(region) for region in layer.clusters)
            return (
                f"in {max(places, 1)} regions, {groups} groups of input channels that are active together, each "
                f"reduced to {_listed(ranks)} channels; then 1 x 1 to {outputs}"
            )
        case "separable":
            return f"a kernel column to {ranks[0]} channels, then a kernel row to {outputs}"
        case "tucker-2":
            return f"1 x 1 to {ranks[1]} channels, {kernel} to {ranks[0]}, 1 x 1 to {outputs}"
        case "channel-groups":
            return f"{len(ranks)} groups of channels, each reduced to {_listed(ranks)}; then 1 x 1 to {outputs}"
        case "cp":
            return f"a sum of {ranks[0]} terms: 1 x 1, a {kernel} kernel for each channel, 1 x 1 to {outputs}"
        case _:
            return f"a thinner layer, of which {_listed(ranks)} are left"


def _listed(ranks: tuple[int, ...]) -> str:
    """Like ranks once, unlike ones all, a long list by its ends."""
    if len(set(ranks)) == 1:
        return str(ranks[0])
    if len(ranks) <= 9:
        return ", ".join(map(str, ranks))
    return f"{min(ranks)} to {max(ranks)}"


def _ratio(before: int, after: int) -> str:
    if not before or not after:
        return "no"
    return f"{before / after:.2f} times fewer" if before >= after else f"{after / before:.2f} times as many"
