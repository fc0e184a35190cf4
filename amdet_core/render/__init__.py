"""Pictures of what a trigger does, painted by the user's own Stable Diffusion outside ComfyUI.

``painting.render`` composes: the report of a scan and a checkpoint in, a grid of pictures out.
"""

from .painting import Painted, Rendering, check_ready, render

__all__ = ["Painted", "Rendering", "check_ready", "render"]
