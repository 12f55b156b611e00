"""How codes of a matrix are laid out, in numbers, as csrc/coding.h has them: what counts bytes needs no kernels."""

# Rows of a matrix whose codes lie side by side.
BLOCK_ROWS = 16
# Numbers of a row that lie together: groups begin where units do.
UNIT_DEPTH = 32
# Codes of as many bits have a layout; others are held as those of the next more.
HELD_BITS = (2, 3, 4, 5, 6, 8)
