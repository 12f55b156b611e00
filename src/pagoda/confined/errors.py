"""Why a confined call gave no result.

None of these is for users: whoever calls says in a named error of its own what was too much. Messages are the end of a
sentence.
"""


class ConfinedError(Exception):
    """A call gave no result. The message says why, as the end of a sentence."""


class TooSlowError(ConfinedError):
    """The time was used up."""


class TooMuchMemoryError(ConfinedError):
    """The memory was used up."""


class KilledError(TooMuchMemoryError):
    """The system killed the child, as it does where memory is short."""


class TooLargeResultError(ConfinedError):
    """The result is longer than it may be."""


class CrashedError(ConfinedError):
    """The child ended in another way."""


class NotReadyError(ConfinedError):
    """There was no child for the call: it could not be started, or not be prepared.

    It will be the same the next time if `is_final`, since the preparation raised.
    """

    def __init__(self, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class FunctionError(ConfinedError):
    """The function raised: `kind` is the name of the exception, the message is its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NotWantedError(ConfinedError):
    """Nobody wanted the result any longer, or the `Confined` was closed."""
