"""ComfyUI's entry into this node pack; the command line and libraries import ``amdet_core`` instead."""

if __package__:  # ComfyUI loads a pack as a package; test runners may import this file on its own
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"
