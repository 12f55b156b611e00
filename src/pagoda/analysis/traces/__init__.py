"""What a service was asked: traces as files have them, and as a simulation runs them."""
