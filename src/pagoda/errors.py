"""Every error a user of Pagoda can cause, as one tree.

    PagodaError
    ├── ConfigError                 an option that cannot be honoured
    ├── ModelError
    │   ├── ModelNotFoundError      no checkpoint at that path
    │   ├── CorruptCheckpointError  a file of the checkpoint cannot be read
    │   └── UnsupportedModelError   a family Pagoda would run wrongly, so it does not run it
    ├── RequestError                this request is refused or failed; others go on
    │   ├── EmptyPromptError
    │   ├── PromptTooLongError
    │   ├── TokenOutOfRangeError
    │   ├── EncoderInputError       an encoder-decoder model needs one of its kind; no other model takes one
    │   │   └── EncoderInputTooLongError
    │   ├── InvalidSamplingError
    │   ├── StructuredOutputError   the output cannot have the form that was asked for
    │   ├── BreakpointError         a breakpoint is not in the prompt, or lasts no time
    │   ├── TokenizerRequiredError
    │   ├── ChatTemplateError       a chat template refuses a conversation, fails, or does too much
    │   ├── NonFiniteLogitsError
    │   ├── NonFiniteCacheError
    │   ├── MemoryFullError         pages ran short, and it asked to end then
    │   └── RequestCancelledError
    ├── CacheError
    │   ├── OutOfPagesError         the pool cannot hold what was asked for
    │   ├── IntegrityError          Pagoda's own bookkeeping is broken: please report it
    │   ├── PageRecordError         stored bytes are not the page that was asked for: a miss, which says why
    │   ├── TierError               a tier cannot be used, or failed
    │   ├── SessionError            a session file cannot be read, or is of something else
    │   │   ├── SessionNotWrittenError
    │   │   └── SessionTooLargeError  there is no room for it among the others
    │   └── UnsupportedCallError    Hugging Face code asks a PagedCache for what it cannot do
    ├── TraceError                  a trace, or under --strict a line of it, cannot be replayed
    ├── HttpError                   the server's answer to a request that it does not serve, with a status
    ├── KernelUnavailableError      a kernel was forced that this machine or build lacks
    ├── DeviceUnavailableError      there is no GPU that can be used, or not enough of it
    ├── DeviceLostError             a GPU stopped in the middle of a step
    └── EngineClosedError           the engine was closed before the request finished

Messages say what to do next. `assert` is for our own bugs only and never stands in for one of these.
"""


class PagodaError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(PagodaError, ValueError):
    """An option has a value that cannot be honoured."""


class ModelError(PagodaError):
    """A checkpoint cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no checkpoint at the given path."""


class CorruptCheckpointError(ModelError):
    """A file of the checkpoint cannot be read or contradicts another."""


class UnsupportedModelError(ModelError):
    """The model family would give wrong results here, so it is refused; the message names the reason."""


class RequestError(PagodaError, ValueError):
    """One request is refused or failed; the engine and its other requests go on."""


class EmptyPromptError(RequestError):
    """The prompt has no token."""


class PromptTooLongError(RequestError):
    """The prompt does not fit the model's context or the page pool: it has `num_tokens` or more, of `max_tokens`."""

    def __init__(self, message: str, num_tokens: int, max_tokens: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class TokenOutOfRangeError(RequestError):
    """A token id is not in the model's vocabulary."""


class EncoderInputError(RequestError):
    """What the encoder should read is missing, of the wrong kind, or given to a model that has no encoder."""


class EncoderInputTooLongError(EncoderInputError):
    """What the encoder should read is longer than it, or its page pool, takes."""


class InvalidSamplingError(RequestError):
    """A sampling parameter is out of its range."""


class StructuredOutputError(RequestError):
    """The output cannot have the form that was asked for, or what enforces it is not installed."""


class BreakpointError(RequestError):
    """A breakpoint lies outside the prompt, before another one, or lasts no time."""


class TokenizerRequiredError(RequestError):
    """Text was given or asked for, but the checkpoint has no tokenizer."""


class ChatTemplateError(RequestError):
    """A chat template refuses a conversation, fails on it, or takes too much time or memory for it."""


class NonFiniteLogitsError(RequestError):
    """The model produced NaN or infinity for this sequence."""


class NonFiniteCacheError(RequestError):
    """The model produced a key or value of NaN or infinity for this sequence."""


class MemoryFullError(RequestError):
    """Pages ran short for the running requests, and this one asked to end then rather than wait."""


class RequestCancelledError(RequestError):
    """The request was cancelled before it finished."""


class CacheError(PagodaError):
    """The KV cache cannot do what was asked."""


class OutOfPagesError(CacheError):
    """No page is free and none may be evicted."""


class IntegrityError(CacheError):
    """The cache's bookkeeping contradicts itself: a bug in Pagoda."""


class PageRecordError(CacheError):
    """Stored bytes are damaged, or are not the page that was asked for: `field` says what differs."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TierError(CacheError):
    """A tier cannot be used, or failed; requests go on without it."""


class SessionError(CacheError):
    """A session file cannot be read, or holds what another model, format or tenant computed."""


class UnsupportedCallError(CacheError):
    """Hugging Face code calls a model with a PagedCache in a way that would give wrong results; nothing is computed."""


class SessionNotWrittenError(SessionError):
    """The disk does not take a session; what was there under its name still is."""


class SessionTooLargeError(SessionError):
    """A session takes more bytes than there is room for; nothing was written."""


class TraceError(PagodaError, ValueError):
    """A trace has nothing that can be replayed, breaks off, or has a line that is no request where all must be."""


class HttpError(PagodaError):
    """What the server answers instead of what was asked for.

    status: of HTTP. param: the field that is wrong. code: what a program may act upon. retry_after_seconds: when to try
    again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class KernelUnavailableError(PagodaError):
    """A kernel backend or instruction set was forced that this machine or build does not have."""


class DeviceUnavailableError(PagodaError):
    """There is no GPU that can be used, or not enough of it."""


class DeviceLostError(PagodaError):
    """A GPU cannot compute any more: its driver, or a program on it, failed."""


class EngineClosedError(PagodaError):
    """The engine was closed before the request finished."""
