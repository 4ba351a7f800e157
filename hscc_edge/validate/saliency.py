"""Where in a picture a decision rests: how much of a label's probability is lost when a patch is hidden."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra
from hscc_edge.model.head import Head, probabilities

with extra("workstation"):
    import torch
    from monai.visualize.occlusion_sensitivity import OcclusionSensitivity
    from torch import nn

PATCHES = 8


def occlusion(network: nn.Module, pixels: NDArray[np.float32], head: Head, label: int) -> NDArray[np.float64]:
    """Probability that `label` loses where a patch around that place gets the picture's mean; (H, W) or (D, H, W).

    MONAI's occlusion sensitivity (Zeiler and Fergus 2014), with patches an eighth of the shortest side; some hundred
    inferences.

    Args:
        pixels: (C, H, W) or (C, D, H, W), preprocessed.
    """
    side = max(min(pixels.shape[1:]) // PATCHES, 1)
    explain = OcclusionSensitivity(
        network, mask_size=side, n_batch=16, overlap=0.5, mode="mean_img", verbose=False, activate=False
    )
    image = torch.from_numpy(pixels[None])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional", UserWarning)  # MONAI's own
        logits, _ = explain(image)
        whole = network(image).numpy()
    hidden = np.moveaxis(np.asarray(logits)[0], 0, -1)  # (*space, n)
    kept = probabilities(head, hidden.reshape(-1, hidden.shape[-1]))[:, label].reshape(hidden.shape[:-1])
    return np.asarray(probabilities(head, whole)[0, label] - kept)
