"""What the bodies of all APIs have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Values are taken as they are: no text for a number, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
