"""What all settings have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError


class Config(BaseModel):
    """Base of all settings; raises ConfigError naming field, value and allowed range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                expected=f"{type(self).__name__}.{field}: {first['msg']}",
                found=repr(first.get("input")),
                remedy=f"{error.error_count()} setting(s) to correct; see docs/configuration.md.",
            ) from error
