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
    │   ├── TokenizerRequiredError
    │   ├── NonFiniteLogitsError
    │   ├── NonFiniteCacheError
    │   └── RequestCancelledError
    ├── CacheError
    │   ├── OutOfPagesError         the pool cannot hold what was asked for
    │   └── IntegrityError          Pagoda's own bookkeeping is broken: please report it
    ├── KernelUnavailableError      a kernel was forced that this machine or build lacks
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
    """The prompt does not fit the model's context or the page pool."""


class TokenOutOfRangeError(RequestError):
    """A token id is not in the model's vocabulary."""


class EncoderInputError(RequestError):
    """What the encoder should read is missing, of the wrong kind, or given to a model that has no encoder."""


class EncoderInputTooLongError(EncoderInputError):
    """What the encoder should read is longer than it, or its page pool, takes."""


class InvalidSamplingError(RequestError):
    """A sampling parameter is out of its range."""


class TokenizerRequiredError(RequestError):
    """Text was given or asked for, but the checkpoint has no tokenizer."""


class NonFiniteLogitsError(RequestError):
    """The model produced NaN or infinity for this sequence."""


class NonFiniteCacheError(RequestError):
    """The model produced a key or value of NaN or infinity for this sequence."""


class RequestCancelledError(RequestError):
    """The request was cancelled before it finished."""


class CacheError(PagodaError):
    """The KV cache cannot do what was asked."""


class OutOfPagesError(CacheError):
    """No page is free and none may be evicted."""


class IntegrityError(CacheError):
    """The cache's bookkeeping contradicts itself: a bug in Pagoda."""


class KernelUnavailableError(PagodaError):
    """A kernel backend or instruction set was forced that this machine or build does not have."""


class EngineClosedError(PagodaError):
    """The engine was closed before the request finished."""
