"""A bundle's network, rebuilt from its spec and plan, with its weights."""

from __future__ import annotations

from pathlib import Path

from hscc_edge.bundle import SOURCE, WEIGHTS, Bundle, Spec, read_bundle
from hscc_edge.errors import BundleError, ModelError, extra
from hscc_edge.model import foreign, layers, zoo
from hscc_edge.model.fold import fold
from hscc_edge.model.plan import Plan, parse_plan

with extra("workstation"):
    from safetensors.torch import load_file, save
    from torch import nn


def fresh_network(spec: Spec, source: Path | None = None) -> nn.Module:
    """The network that a spec describes, its plan applied, with fresh weights.

    Args:
        source: the graph of a network that was imported; no other needs one.

    Raises:
        ModelError: if the network or a structure is unknown.
    """
    network = _zoo_network(spec) if source is None else _foreign_network(spec, source)
    return apply_plan(network, parse_plan(spec.plan)) if spec.plan else network


def _zoo_network(spec: Spec) -> nn.Module:
    classes = 1 if spec.head["kind"] == "single_logit" else len(spec.labels)
    return zoo.build_network(spec.network["name"], spec.input_shape[0], classes, spec.network.get("args", {}))


def _foreign_network(spec: Spec, source: Path) -> nn.Module:
    layout = str(spec.network.get("args", {}).get("layout"))
    return foreign.Foreign(foreign.read_graph(source, spec.input_shape, layout).network, layout)


def apply_plan(network: nn.Module, plan: Plan) -> nn.Module:
    """Fold and replace in place, with fresh weights; the same network is returned.

    Raises:
        ModelError: if the network lacks a layer of the plan, or a structure is not for it.
    """
    try:
        fold(network, plan.folded)
        for layer in plan.layers:
            layers.replace(network, layer.name, layers.factorised(network.get_submodule(layer.name), layer))
    except AttributeError as error:
        raise ModelError(f"the plan is of another network ({error}): give a plan made for this one") from error
    return network


def load_network(bundle: Bundle) -> nn.Module:
    """The bundle's network with its weights, in evaluation mode, on the CPU.

    Raises:
        BundleError: if the weights do not fit the network.
    """
    imported = bundle.spec.network["name"] == foreign.NAME
    network = fresh_network(bundle.spec, bundle.path(SOURCE) if imported else None)
    weights = load_file(bundle.path(WEIGHTS))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise BundleError(
            f"the weights of {bundle.root} do not fit its network ({first}): make the bundle anew"
        ) from error
    return network.eval()


def weights_of(network: nn.Module) -> bytes:
    """The network's state as safetensors bytes."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def network_of(root: Path) -> nn.Module:
    """The network of the bundle at `root`; the target of `network_def` in configs/inference.json."""
    return load_network(read_bundle(root))
