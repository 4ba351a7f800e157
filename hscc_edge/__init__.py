"""hscc_edge: compress, prove and serve medical image classifiers on the edge."""

__version__ = "0.1.0"
