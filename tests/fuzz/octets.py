"""Mutations of bytes of which nothing is known."""

from random import Random

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 4,
    b"\0" * 4,
    b"\xff" * 8,
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"\0\0\x80\xff",
)


def mutated(data: bytes, rng: Random) -> bytes:
    """Return bytes with one to four of them, or spans of them, changed."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(made, rng)
    return bytes(made)


def _change(made: bytearray, rng: Random) -> None:
    place = rng.randrange(len(made) + 1)
    end = min(len(made), place + rng.choice((1, 2, 4, 8, 64, 1000)))
    match rng.randrange(9):
        case 0 | 1 if place < len(made):
            made[place] ^= 1 << rng.randrange(8)
        case 2 if place < len(made):
            made[place] = rng.randrange(256)
        case 3:
            del made[place:end]
        case 4:
            made[place:place] = made[place:end]
        case 5:
            made[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        case 6:
            piece = rng.choice(INTERESTING)
            made[place : place + len(piece)] = piece
        case 7:
            del made[place:]
        case _:
            made += rng.choice((b"\0", b"\xff" * 3, bytes(made[:end]), bytes(64)))
