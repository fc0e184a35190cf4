"""Attacks on text encoders, to test the detector with; each one yields a Patch and what it achieves."""

from .text_on_text import Injection, InjectionReport, Placement, inject

__all__ = ["Injection", "InjectionReport", "Placement", "inject"]
