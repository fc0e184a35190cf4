"""The errors of the library, one small tree.

AmdetError
├── ConfigError      a setting, a prompt file, a policy or an argument is not usable
├── EncoderError     a file holds no text encoder that can be scanned, or not the one that was asked for
│   └── NoEncoderError   it holds nothing that takes part in reading prompts
├── NumericalError   weights or results are not finite, or an optimisation diverged
└── StorageError     something could not be read from or written to disk
"""

from __future__ import annotations


class AmdetError(Exception):
    """Base of every error that this library raises on purpose.

    The message says what was expected, what was found and what to do.
    """

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(f"expected {expected}; found {found}. {remedy}")

    def __reduce__(self) -> tuple[type[AmdetError], tuple[str, str, str]]:
        """How to make it again in the process that a worker reports to."""
        return type(self), (self.expected, self.found, self.remedy)


class ConfigError(AmdetError):
    """A setting, a prompt file, a policy or an argument is not usable."""


class EncoderError(AmdetError):
    """A file holds no text encoder that can be scanned, or not the one that was asked for."""


class NoEncoderError(EncoderError):
    """A file holds nothing that takes part in reading prompts, as an image model or a VAE."""


class NumericalError(AmdetError):
    """Weights or results are not finite, or an optimisation diverged."""


class StorageError(AmdetError):
    """Something could not be read from or written to disk."""
