"""How the numbers of a layout become the bytes of a page."""
