"""What may have happened to a file that holds pages."""


def mutate(data, draw):
    """Some bytes changed, cut out, put in, copied from elsewhere, or the end gone."""
    mutated = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        start, count = draw.randrange(len(mutated) + 1), draw.choice((1, 2, 8, 200))
        match draw.randrange(5):
            case 0:
                mutated[start : start + count] = draw.randbytes(count)
            case 1:
                del mutated[start : start + count]
            case 2:
                mutated[start:start] = draw.randbytes(count)
            case 3:
                source = draw.randrange(len(data))
                mutated[start : start + count] = data[source : source + count]
            case _:
                del mutated[start:]
    return bytes(mutated)
