"""What decides the bytes of a page beside the tokens before it."""

from typing import NamedTuple


class Namespace(NamedTuple):
    """Sequences of different namespaces share nothing.

    `tenant` is whose pages these are, and `salt` keeps apart what else must not meet. `encoder_digest` stands for what
    the encoder of the model reads, of which it makes `num_encoder_tokens`: the decoder attends to those in every layer,
    so all of its own tokens depend on them.
    """

    salt: str = ""
    encoder_digest: bytes = b""
    num_encoder_tokens: int = 0
    tenant: str = ""
