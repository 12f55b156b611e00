"""Limits how many requests of each tenant may wait or be in flight, whatever the others do.

Half of the queue belongs to the tenants by weight, the other half to whoever comes first. Knows tenants and counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pagoda.errors import HttpError
from pagoda.server.ground.tenants import Tenant, Tenants


class Quotas:
    """Shares a queue of `num_places` among tenants."""

    def __init__(self, num_places: int, tenants: Tenants) -> None:
        self._num_places = num_places
        weights = tenants.weights
        share = 1.0 if len(weights) == 1 else 0.5
        self._own = {
            name: math.floor(num_places * share * weight / sum(weights.values())) for name, weight in weights.items()
        }

    def check_queue(
        self, tenant: Tenant, num_new: int, waiting: Mapping[str, int], param: str, retry_after_seconds: int
    ) -> None:
        """Raise HttpError 429 if the queue has no room for `num_new` prompts beside those `waiting` of each tenant.

        400 if it never has: the field `param` has too many.
        """
        own, mine = self._own[tenant.name], waiting.get(tenant.name, 0)
        in_common = self._num_places - sum(self._own.values())
        if num_new > own + in_common:
            message = f"{param} has {num_new} prompts; at most {own + in_common} may wait at once, so send fewer."
            raise HttpError(400, message, param=param, code="too_many_requests")
        taken = sum(max(count - self._own[name], 0) for name, count in waiting.items() if name != tenant.name)
        if mine + num_new > own + in_common - taken:
            raise HttpError(
                429,
                f"The queue is full: {self._num_places} requests may wait at once, yours are {mine}; try later.",
                code="queue_full",
                retry_after_seconds=retry_after_seconds,
            )


def check_limit(tenant: Tenant, num_new: int, num_in_flight: int, param: str, retry_after_seconds: int) -> None:
    """Raise HttpError unless `num_new` samples of a tenant may be in flight beside `num_in_flight`.

    429 if that passes, 400 if the field `param` asks for too many.
    """
    limit = tenant.max_requests
    if limit is None:
        return
    if num_new > limit:
        message = f"{param} asks for {num_new} samples; this key may have {limit} in flight, so ask for fewer."
        raise HttpError(400, message, param=param, code="too_many_requests")
    if num_in_flight + num_new > limit:
        raise HttpError(
            429,
            f"There are {num_in_flight} samples of this key in flight, of at most {limit}; wait for one to end.",
            code="too_many_requests",
            retry_after_seconds=retry_after_seconds,
        )
