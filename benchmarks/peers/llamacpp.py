"""Greedy decoding by llama.cpp: seconds a token after the prompt, on as many threads as asked for."""

import sys
import time

import numpy as np


def decode(path, prompt, new, threads, repetitions):
    """Seconds a token of each repetition, CPU seconds a token, and the tokens."""
    from llama_cpp import Llama

    model = Llama(
        path, n_ctx=len(prompt) + new + 8, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    seconds, cpu, tokens = [], [], []
    for repetition in range(repetitions + 1):
        model.reset()
        model.eval(prompt)
        tokens = []
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(new):
            scores = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(model.n_vocab(),))
            tokens.append(int(np.argmax(scores)))
            model.eval(tokens[-1:])
        if repetition:
            seconds.append((time.perf_counter() - began) / new)
            cpu.append((time.process_time() - began_cpu) / new)
    return {"seconds": seconds, "cpu": cpu, "tokens": tokens}


if __name__ == "__main__":
    with np.load(sys.argv[1]) as given:
        arrays = dict(given)
    found = decode(
        str(arrays["path"]),
        arrays["prompt"].tolist(),
        int(arrays["new"]),
        int(arrays["threads"]),
        int(arrays["repetitions"]),
    )
    np.savez(sys.argv[2], **{name: np.array(value) for name, value in found.items()})
