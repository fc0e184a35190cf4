"""AMDET: find, show, plant and repair backdoors in text encoders.

A silent library: it prints nothing, sets no global seed and never changes the caller's encoder.
``docs/method.md`` maps its functions to the equations of the paper (arXiv 2512.00343).
"""

__version__ = "0.1.0"
