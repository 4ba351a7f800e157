"""An imported bundle's network in the place of the model that it came from."""

from __future__ import annotations

import dataclasses

import numpy as np

from hscc_edge.bundle import SOURCE, Bundle
from hscc_edge.errors import ExportError
from hscc_edge.export.onnx_dropin import export_dropin
from hscc_edge.model.foreign import Foreign, as_given, read_graph
from hscc_edge.model.load import load_network


def bundle_dropin(bundle: Bundle) -> tuple[bytes, list[str], list[str]]:
    """ONNX with the original's inputs, outputs, layout, dtypes, varying axes and last activation; and their names.

    Raises:
        ExportError: if the bundle was not imported, or the graph is not its network.
    """
    network = load_network(bundle)
    if not isinstance(network, Foreign):
        raise ExportError(
            f"the bundle {bundle.root} was not imported: a drop-in takes the place of an imported model; export it "
            "with --cohort"
        )
    shape, layout = bundle.spec.input_shape, str(bundle.spec.network["args"]["layout"])
    original = read_graph(bundle.path(SOURCE), shape, layout)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((batch, *shape)).astype(np.float32) for batch in (1, 2)]
    examples = [(as_given(images, original.inputs[0], layout),) for images in noise]
    content = export_dropin(dataclasses.replace(original, network=network.network), examples)
    return content, [port.name for port in original.inputs], [port.name for port in original.outputs]
