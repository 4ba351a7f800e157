"""hscc_edge: compress, prove and serve medical image classifiers on the edge."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime's wheels for Linux report models and usage to their maker unless this stands before they
# are imported (github.com/microsoft/onnxruntime/pull/27379). Nothing leaves a hospital unasked.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
