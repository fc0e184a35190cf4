"""Benchmarks: what is claimed about the detector, measured on models whose labels are known."""

from .detection import Benchmark, run
from .results import Detection, ModelResult, read_detection

__all__ = ["Benchmark", "Detection", "ModelResult", "read_detection", "run"]
