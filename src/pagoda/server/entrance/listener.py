"""Takes the socket of the server before the model is loaded."""

from __future__ import annotations

import socket

from pagoda.errors import ConfigError
from pagoda.server.ground.options import ServerOptions

BACKLOG = 2048


def listen(options: ServerOptions) -> socket.socket:
    """Raises ConfigError if another process has the port."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{options.host}:{options.port} cannot be listened on: {error}; choose another --port."
        ) from error
