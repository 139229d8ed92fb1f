"""The two errors whose message is written for the person at the keyboard.

Both name the argument or file at fault, its value, and what would be right; the command line prints them without a
traceback and exits with code 2.
"""


class InputError(ValueError):
    """An argument, a file or a configuration handed in by the user cannot be used."""


class ResourceError(RuntimeError):
    """Something outside the program is missing or failed: a package, the network, a checksum, the disk."""
