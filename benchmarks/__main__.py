"""`python -m benchmarks NAME ... [--quick]`, `python -m benchmarks --all --quick`."""

import argparse
import os
import sys
import time

from benchmarks import harness
from jaxlab.cli.tables import print_table
from jaxlab.errors import InputError, ResourceError


def main(argv: list[str] | None = None) -> int:
    """Runs benchmarks one after the other; the exit code is 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(harness.names())}")
    parser.add_argument("--all", action="store_true", help="run every benchmark")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it works")
    options = parser.parse_args(argv)
    chosen = harness.names() if options.all else options.names
    if not chosen:
        parser.error(f"name a benchmark or pass --all; there are {', '.join(harness.names()) or 'none'}")
    unknown = [name for name in chosen if name not in harness.names()]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(harness.names())}")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does
    failed = [name for name in chosen if not _run(name, options.quick)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _run(name: str, quick: bool) -> bool:
    module = harness.load(name)
    sys.stdout.write(f"{name}: {(module.__doc__ or '').strip().splitlines()[0]}\n")
    start = time.monotonic()
    try:
        rows = module.run(quick)
    except (InputError, ResourceError) as error:
        sys.stderr.write(f"{name} cannot run: {error}\n")
        return False
    path = harness.save(name, rows, quick=quick, seconds=time.monotonic() - start)
    print_table(rows)
    sys.stdout.write(f"written to {path}\n\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
