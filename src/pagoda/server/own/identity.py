"""Says what the pages of this server are of: `/v1/kv/identity`, for admins.

Servers that answer the same call the same pages by the same names. The weights are read whole when somebody asks first.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from pagoda.analysis.namespaces import identity_as_json
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import check_admin, json_response


class PageIdentity:
    """The handler, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def identity(self, request: Request) -> Response:
        """What the pages of this server are of, and one digest of all of that.

        The first answer takes about a second for each gigabyte of weights.
        """
        check_admin(request)
        identity = await asyncio.wrap_future(self._service.backend.page_identity())
        return json_response(identity_as_json(identity))
