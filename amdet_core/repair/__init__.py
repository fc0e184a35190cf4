"""Repairs of backdoored encoders, each with evidence of what it achieved and what it cost."""

from .condition import Case, Condition, Response
from .heal import Attempt, Clinic, Healed, Healing, HealReport, heal, heal_each, triggers
from .kinds import (
    ANCHORED,
    BLIND,
    CONFIGS,
    TRIGGERED,
    Outcome,
    Repair,
    check_effect,
    check_lora,
    known_bounds,
    named,
    repair,
)
from .ladder import needs_anchor
from .probe import Probe
from .report import UNJUDGED, render_heal, render_repairs

__all__ = [
    "ANCHORED",
    "BLIND",
    "CONFIGS",
    "TRIGGERED",
    "UNJUDGED",
    "Attempt",
    "Case",
    "Clinic",
    "Condition",
    "HealReport",
    "Healed",
    "Healing",
    "Outcome",
    "Probe",
    "Repair",
    "Response",
    "check_effect",
    "check_lora",
    "heal",
    "heal_each",
    "known_bounds",
    "named",
    "needs_anchor",
    "render_heal",
    "render_repairs",
    "repair",
    "triggers",
]
