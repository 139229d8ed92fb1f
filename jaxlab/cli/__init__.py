"""The command line: `jaxlab list | info | run | sweep | models | ppl | chat`.

Each command lives in a module of its own that is imported only when called, so that help and lists answer at
once.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from jaxlab.errors import InputError, ResourceError

_COMMANDS = {
    "list": ("overview", "list_systems", "every system: paper, command, what it needs"),
    "info": ("overview", "show_info", "versions, devices, what is installed"),
    "run": ("run", "run_system", "run SYSTEM from its data to its figures"),
    "sweep": ("sweep", "sweep_system", "run SYSTEM over a grid of options and many seeds at once"),
    "models": ("models", "models", "language models: list, info MODEL, convert SRC DIR"),
    "ppl": ("ppl", "perplexity", "perplexity of MODEL on a real text"),
    "chat": ("chat", "chat", "talk to MODEL"),
}

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after `jaxlab`; None means those of this process.

    Returns:
      Exit code: 0, 2 after an error that the message explains, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    # LAPACK's own threads and those of XLA hold each other up; only small blocks are left to LAPACK.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            _print_help()
            return EXIT_OK
        if argv[0] == "--version":
            from jaxlab import __version__

            sys.stdout.write(f"jaxlab {__version__}\n")
            return EXIT_OK
        return _command(argv[0])(argv[1:])
    except (InputError, ResourceError) as error:
        _print_error(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _print_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; what Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean `jaxlab {close[0]}`?" if close else f"commands are {', '.join(_COMMANDS)}"
        raise InputError(f"unknown command {name!r}: {hint}")
    module, function, _ = _COMMANDS[name]
    return getattr(importlib.import_module(f"jaxlab.cli.{module}"), function)


def _print_help() -> None:
    lines = ["usage: jaxlab COMMAND ...", ""]
    lines += [f"  {name:8} {text}" for name, (_, _, text) in _COMMANDS.items()]
    lines += ["", "`jaxlab COMMAND --help` explains its options; `jaxlab run pvq` is a good start.", ""]
    sys.stdout.write("\n".join(lines))


def _print_error(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(
        f"error: {message}", style="red", markup=False, highlight=False
    )
