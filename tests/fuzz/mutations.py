"""Damage to files: to their bytes, and to the pieces that they are made of."""

import pickletools
import random
import warnings
from collections.abc import Sequence


def pieces_of(data: bytes) -> list[bytes]:
    """The opcodes of a pickle, the lines and cells of a text; single bytes of anything else."""
    if data[:1] in (b"\x80", b"("):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                places = [place for _, _, place in pickletools.genops(data) if place is not None]
            return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
        except ValueError:
            pass
    for separator in (b"\n", b","):
        if data.count(separator) > 3:
            return [piece + separator for piece in data.split(separator)]
    return [data[place : place + 1] for place in range(len(data))]


def mutated(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], chance: random.Random) -> bytes:
    """A damaged copy: one to four changes.

    Args:
        data: A whole file.
        others: Files to take pieces of.
        tokens: What may be put in anywhere.
        chance: The source of all chance.
    """
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = _mutated_once(data, others, tokens, chance)
    return data


def _mutated_once(data: bytes, others: Sequence[bytes], tokens: Sequence[bytes], chance: random.Random) -> bytes:
    kind = chance.randrange(8)
    place = chance.randrange(len(data) + 1)
    if kind == 0:
        return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + chance.choice(tokens) + data[place + chance.choice((0, 0, 1, 4)) :]
    if kind == 2:
        return data[:place]
    if kind == 3:
        return data[:place] + data[place + chance.randrange(1, 9) :]
    if kind == 4:
        bit = 1 << chance.randrange(8)
        return data[:place] + bytes(byte ^ bit for byte in data[place : place + 1]) + data[place + 1 :]
    pieces = pieces_of(data)
    if not pieces:
        return data
    index = chance.randrange(len(pieces))
    if kind == 5:
        del pieces[index]
    elif kind == 6:
        pieces.insert(chance.randrange(len(pieces)), pieces[index])
    else:
        pieces[index] = chance.choice(pieces_of(chance.choice(others)) or [b""])
    return b"".join(pieces)
