"""What a body asks for, in the engine's words."""

from __future__ import annotations

from typing import NamedTuple

from pagoda.sampling_params import SamplingParams
from pagoda.server.asked.conversation import Conversation, ReadConversation
from pagoda.server.asked.fingerprint import Fingerprint


class Asked(NamedTuple):
    """All that is made of a body beside the event loop, since that takes as long as the body is."""

    conversation: Conversation
    params: SamplingParams
    read: ReadConversation
    fingerprint: Fingerprint
