"""Benchmarks: what is claimed about the detector, measured on models whose labels are known.

That of image encoders, :mod:`.images`, is imported by itself: it needs torchvision, which takes seconds to load.
"""

from .calibration import by_model, calibrate, calibrate_policy
from .detection import Benchmark, judge_again, policy_sha256, run
from .flips import Flips, flips, read_flips
from .guarding import GuardBenchmark, GuardResult, read_guarding, run_guard
from .painting import Painting, PaintingBenchmark, read_painting, run_painting
from .picturing import PictureBenchmark, PictureResult, read_pictures, run_pictures
from .repairing import RepairBenchmark, RepairResult, read_repairing, run_repair
from .results import Detection, ModelResult, read_detection

__all__ = [
    "Benchmark",
    "Detection",
    "Flips",
    "GuardBenchmark",
    "GuardResult",
    "ModelResult",
    "Painting",
    "PaintingBenchmark",
    "PictureBenchmark",
    "PictureResult",
    "RepairBenchmark",
    "RepairResult",
    "by_model",
    "calibrate",
    "calibrate_policy",
    "flips",
    "judge_again",
    "policy_sha256",
    "read_detection",
    "read_flips",
    "read_guarding",
    "read_painting",
    "read_pictures",
    "read_repairing",
    "run",
    "run_guard",
    "run_painting",
    "run_pictures",
    "run_repair",
]
