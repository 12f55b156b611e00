"""Which tokens a live sequence keeps once its memory is bounded: one policy a file."""
