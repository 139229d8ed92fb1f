"""Options from frozen dataclasses, by tyro."""

from typing import Annotated, Any, TypeVar

from jaxlab.errors import InputError

Options = TypeVar("Options")


def parse(
    options: type[Options], argv: list[str], *, command: str, description: str, default: Any = None
) -> Options:
    """Reads `argv` into a dataclass; its field docstrings become the help. Exits with 2 on unknown options.

    Args:
      options: the dataclass.
      argv: the words after the command.
      command: what stands before them, for the help ("run pvq").
      description: first lines of the help.
      default: an instance that gives the defaults; None means those of the class.
    """
    import tyro

    kind: Any = Annotated[options, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes]
    defaults = {} if default is None else {"default": default}
    return tyro.cli(kind, args=argv, prog=f"jaxlab {command}", description=description, **defaults)


def no_options(command: str, description: str, argv: list[str]) -> None:
    """For a command without options: answers `--help`, refuses anything else."""
    if any(word in ("-h", "--help") for word in argv):
        import sys

        sys.stdout.write(f"usage: jaxlab {command}\n\n{description}\n")
        sys.exit(0)
    if argv:
        raise InputError(f"`jaxlab {command}` takes no options, but got {' '.join(argv)!r}")
