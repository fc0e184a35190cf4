"""Graphs as POST /prompt takes them, written short."""

from __future__ import annotations

from typing import Any

Graph = dict[str, Any]
SCAN = {"preset": "quick", "policy": "amdet-2", "seed": 42, "stop_at": "never"}


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    """One node; an input ``("id", slot)`` is a link."""
    wired = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": wired, "_meta": {"title": kind}}


def pocket(name: str) -> dict[str, Any]:
    """The pocket encoder of that name."""
    return node("AMDET_PocketTextEncoder", name=name)


def scan(clip: tuple[str, int], **inputs: Any) -> dict[str, Any]:
    """A quick scan."""
    return node("AMDET_BackdoorScan", clip=clip, **{**SCAN, **inputs})


def text(source: tuple[str, int]) -> dict[str, Any]:
    """Shows any value as text."""
    return node("PreviewAny", source=source)
