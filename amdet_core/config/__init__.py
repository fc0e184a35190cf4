"""Settings of every algorithm: frozen, keyword-only, each field with its default, unit and source."""

from __future__ import annotations

from .base import Config
from .mimic import (
    BadEncoderConfig,
    DownstreamConfig,
    ImageMimicConfig,
    ImitationConfig,
    MimicConfig,
    NetworkConfig,
    PatchConfig,
    SimclrConfig,
    ViewConfig,
)
from .repairing import CureConfig, DistilConfig, EraseConfig, HealConfig, RenderConfig, RestoreConfig, SpectralConfig
from .scanning import (
    AmdetConfig,
    ContrastConfig,
    GuardConfig,
    LandscapeConfig,
    MovedConfig,
    PatternConfig,
    ScanConfig,
    SearchConfig,
    SweepConfig,
)
from .training import (
    AttributeConfig,
    EmbeddingRowConfig,
    FineTuneConfig,
    InjectionConfig,
    RankOneConfig,
    SyntacticConfig,
    TextOnPairConfig,
    TextOnTextConfig,
    TrainingConfig,
)

__all__ = [
    "AmdetConfig",
    "AttributeConfig",
    "BadEncoderConfig",
    "Config",
    "ContrastConfig",
    "CureConfig",
    "DistilConfig",
    "DownstreamConfig",
    "EmbeddingRowConfig",
    "EraseConfig",
    "FineTuneConfig",
    "GuardConfig",
    "HealConfig",
    "ImageMimicConfig",
    "ImitationConfig",
    "InjectionConfig",
    "LandscapeConfig",
    "MimicConfig",
    "MovedConfig",
    "NetworkConfig",
    "PatchConfig",
    "PatternConfig",
    "RankOneConfig",
    "RenderConfig",
    "RestoreConfig",
    "ScanConfig",
    "SearchConfig",
    "SimclrConfig",
    "SpectralConfig",
    "SweepConfig",
    "SyntacticConfig",
    "TextOnPairConfig",
    "TextOnTextConfig",
    "TrainingConfig",
    "ViewConfig",
]
