"""Two processes that meet over gloo on the loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile


def free_port():
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command, number, port, paths=(), **streams):
    """Process `number` of two, each with one device; `paths` are for its imports."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(number),
    }
    return subprocess.Popen([sys.executable, *command], env=environment, **streams)


def last_lines(*command, paths=()):
    """The last line that each of two processes prints itself, None for none; fails where one of them does."""
    port, lines = free_port(), []
    with contextlib.ExitStack() as files:
        # Files, not pipes: a process that waits for its full pipe to be read keeps the other one waiting.
        outputs = [[files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in range(2)]
        workers = [
            start(command, number, port, paths, stdout=out, stderr=err)
            for number, (out, err) in enumerate(outputs)
        ]
        for worker, streams in zip(workers, outputs, strict=True):
            code = worker.wait(timeout=400)
            for file in streams:
                file.seek(0)
            assert code == 0, streams[1].read()
            # Gloo reports connections through C's buffer, which may come out last.
            own = [line for line in streams[0].read().splitlines() if line and not line.startswith("[Gloo]")]
            lines.append(own[-1] if own else None)
    return lines
