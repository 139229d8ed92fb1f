"""Widths that sequences are padded to, so that inputs of similar length share a compiled program."""

from jaxlab.errors import InputError


def length_bucket(length: int, *, smallest: int = 16) -> int:
    """The smallest width of at least `length` among 4, 5, 6, 7 eighths of powers of two: at most a quarter is padding.

    16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ... Up to 8 every width is a bucket.

    Args:
        length: at least 1.
        smallest: no bucket is smaller.

    Raises:
        InputError: the length is below 1.
    """
    if length < 1:
        raise InputError(f"length is {length}; it must be at least 1")
    step = max(1, 1 << (length - 1).bit_length() >> 3)
    return max(smallest, -(-length // step) * step)
