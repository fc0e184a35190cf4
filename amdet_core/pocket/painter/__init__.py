"""A Stable Diffusion so small that it ships with the library: it paints what the pocket encoder reads.

:mod:`.recipe` makes its weights from pictures that it draws itself.
"""
