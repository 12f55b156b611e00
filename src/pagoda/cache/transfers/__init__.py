"""How the bytes of pages leave their pool and come into it: at once on the host, in the order of streams on a GPU."""
