"""What all settings have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError

LARGEST_SEED = 2**32 - 1
"""Generators take 64 bits; seeds that are made of this one stay far below."""
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class Config(BaseModel):
    """Base of all settings; raises ConfigError naming field, value and allowed range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise ConfigError(
                    expected=f"a setting of {type(self).__name__} ({', '.join(type(self).model_fields)})",
                    found=f"{field}, which is unknown",
                    remedy="See docs/configuration.md for what they do.",
                ) from error
            raise ConfigError(
                expected=f"{type(self).__name__}.{field}: {first['msg']}",
                found=repr(first.get("input")),
                remedy=f"{error.error_count()} setting(s) to correct; see docs/configuration.md.",
            ) from error
