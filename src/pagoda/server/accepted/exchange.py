"""Takes a body to its response by the same steps in every API.

An API says what it calls things and how it reads a body, and brings a writer. Nothing of its words is known here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.outputs import RequestOutput
from pagoda.sampling_params import SamplingParams
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import ignore, origin_of, request_id_of, scope_of
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.asked.conversation import ReadConversation
from pagoda.server.asked.forms import left_out
from pagoda.server.ground.messages import Call, Scope, new_id


class Asking(Protocol):
    """A body of any API, as these steps see it."""

    @property
    def stream(self) -> bool | None: ...

    @property
    def cache_salt(self) -> str | None: ...


class Asked(Protocol):
    """A body that has been read, beside the event loop, since that takes as long as the body is."""

    @property
    def params(self) -> SamplingParams: ...

    @property
    def read(self) -> ReadConversation: ...


class Writer(Protocol):
    """Writes one answer in the words of an API: as events while it comes, or as a whole."""

    def events(self, answer: Answer) -> AsyncIterator[bytes]: ...

    def beat(self) -> bytes:
        """That the answer is still being made."""

    def late_error(self, error: HttpError) -> bytes:
        """An error after the first event."""

    async def whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response: ...


AskingBody = TypeVar("AskingBody", bound=Asking)
AskedBody = TypeVar("AskedBody", bound=Asked)


class Exchange:
    """Makes the calls of one API: their ids have this `prefix`, their prompts are in the field `param`."""

    def __init__(self, service: Service, prefix: str, param: str) -> None:
        self._service = service
        self._prefix = prefix
        self._param = param

    async def ask(
        self,
        body: AskingBody,
        request: Request,
        reading: Callable[[Scope], Callable[[AskingBody], AskedBody]],
        form_param: str,
    ) -> tuple[AskedBody, Call]:
        """What a conversation asks for, and the call of it.

        `reading` gives what reads the body, once there is room for more. Where the output has a form, the field
        `form_param` asks for it.
        """
        service, origin = self._service, origin_of(request)
        service.check_room(origin.tenant, self._param)
        read = reading(scope_of(request, body.cache_salt))
        asked = await service.read(read, body, self._param, origin.tenant)
        ignore(request, left_out(asked.params.structured_outputs))
        work = await service.work(asked.read, asked.params, form_param, origin)
        call = Call(
            call_id=new_id(self._prefix),
            origin=origin,
            works=[work],
            param=self._param,
            streams=bool(body.stream),
            cache_salt=body.cache_salt or "",
        )
        return asked, call


async def respond(service: Service, call: Call, request: Request, writer: Writer) -> Response:
    """Hand a call to the backend, and write what comes of it."""
    answer = submit(service, call, request)
    if call.streams:
        return sse.EventStream(answer, writer.events(answer), writer.late_error, writer.beat)
    return await writer.whole(await sse.finish(answer, request), answer)


def submit(service: Service, call: Call, request: Request) -> Answer:
    """Hand a call to the backend; the log line of the request will tell of the answer."""
    answer = service.submit(call)
    service.late_calls.add(call, request_id_of(request))
    request.state.answer = answer
    return answer
