"""SmolLM2 at torch's speed forward and 1.3 times it with gradients; decoding from 4 bits at half of llama.cpp's speed.

Ours against `transformers` on torch, eager and (in the full run) compiled, in one process, in turns, on the same tokens
in float32. Then greedy decoding of the same GGUF file: ours from weights in float32, packed as they are stored, and
packed with inputs rounded to 8 bits as llama.cpp rounds them; llama.cpp runs in an environment of its own before and
after ours. `load` is the machine's run queue before the turns begin: above about 1 somebody else was at work, and
threads that spin then take many times as long. Scores of 16 continuations of a prompt by `score_continuations` beside
16 whole rows through `token_logprobs`. Last, the memory that losses of Gemma at 1024 tokens take beside what all of
their scores would, from the compiled program.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.peers import run_peer
from jaxlab.models import (
    Model,
    forward,
    generate,
    load,
    logits,
    save_hf,
    score_continuations,
    token_logprobs,
)
from jaxlab.models.loading import resolve
from jaxlab.models.packed import with_integer_products
from jaxlab.models.training import summed_loss

MODEL = "pkg:smollm2"
_PROMPT = "The history of the city of Rome begins"
_TARGETS = {"forward": 1.0, "loss and gradient": 1.3}
_DECODE_TARGET = 0.5
_SCORING_TARGET = 8.0


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of the forward pass, of loss and gradient, and of decoding."""
    load_before = round(os.getloadavg()[0], 2)
    model = load(MODEL)
    shape = (1, 64) if quick else (2, 256)
    tokens = np.random.default_rng(0).integers(3, model.cfg.vocab_size, shape)
    rows = _against_torch(model, tokens, repetitions=1 if quick else 5, compiled=not quick)
    rows += _decoding(model, new=16 if quick else 128, repetitions=1 if quick else 5)
    rows += _scoring(model, 64 if quick else 256, repetitions=1 if quick else 5)
    rows.append(_memory_of_gemma(128 if quick else 1024))
    return [row | {"load": load_before} for row in rows]


def _against_torch(
    model: Model, tokens: np.ndarray, repetitions: int, *, compiled: bool
) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        save_hf(model.params, model.cfg, model.tokenizer, directory)
        eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    networks = {"torch eager": eager} | ({"torch.compile": torch.compile(eager)} if compiled else {})
    given, ids = jnp.asarray(tokens, jnp.int32), torch.tensor(tokens)

    def score(params: Any) -> jax.Array:
        return logits(params, model.cfg, forward(params, model.cfg, given).hidden)

    def loss(params: Any) -> jax.Array:
        return summed_loss(params, model.cfg, given) / given[:, 1:].size

    def scored_by(network: Any) -> Any:
        with torch.no_grad():
            return network(ids).logits.numpy()

    def learned_by(network: Any) -> float:
        eager.zero_grad()
        value = network(ids, labels=ids).loss
        value.backward()
        return float(value.detach())

    ours, learn = jax.jit(score), jax.jit(jax.value_and_grad(loss))
    harness.require_equal([ours(model.params)], [scored_by(eager)], 1e-2)
    harness.require_equal([learn(model.params)[0]], [learned_by(eager)], 1e-3)
    rows = []
    for what, mine, theirs in (
        ("forward", ours, scored_by),
        ("loss and gradient", learn, learned_by),
    ):
        contestants: dict[str, Callable[[], Any]] = {"ours": functools.partial(mine, model.params)}
        for who, network in networks.items():
            contestants[who] = functools.partial(theirs, network)
        timings = harness.compare(contestants, repetitions, turn_s=0.5)
        rows += harness.cpu_rows(f"{what}, {tokens.shape[0]} x {tokens.shape[1]}", timings, _TARGETS[what])
    return rows


def _decoding(model: Model, new: int, repetitions: int) -> list[dict[str, Any]]:
    prompt = np.asarray(model.tokenizer(_PROMPT)["input_ids"], np.int32)
    given = {
        "path": np.array(str(resolve(MODEL))),
        "prompt": prompt,
        "new": np.array(new),
        "threads": np.array(os.cpu_count()),
        "repetitions": np.array(repetitions),
    }
    packed = load(MODEL, packed=True).params
    kinds = {
        "ours, float32": model.params,
        "ours, packed": packed,
        "ours, packed, 8-bit inputs": with_integer_products(packed),
    }
    before = run_peer("llamacpp", given)
    mine = {who: _seconds_a_token(model, params, prompt, new, repetitions) for who, params in kinds.items()}
    after = run_peer("llamacpp", given)
    theirs = {name: np.concatenate([before[name], after[name]]) for name in ("seconds", "cpu")}
    peer = (float(np.median(theirs["seconds"])), float(np.median(theirs["cpu"])), before["tokens"])
    rows = []
    for who, (seconds, cpu, tokens) in (mine | {"llama.cpp": peer}).items():
        same = np.flatnonzero(np.append(tokens != peer[2], True))[0]
        rows.append(
            {
                "what": f"decode {new} tokens",
                "who": who,
                "median_ms": round(1e3 * seconds, 3),
                "cpu_ms": round(1e3 * cpu, 3),
                "tokens_per_s": round(1 / seconds, 1),
                "x_llama_cpp": round(peer[0] / seconds, 3),
                "x_llama_cpp_by_cpu": round(peer[1] / cpu, 3),
                "same_first_tokens": int(same),
                "target": _DECODE_TARGET if "packed" in who else None,
            }
        )
    return rows


def _scoring(model: Model, time: int, repetitions: int) -> list[dict[str, Any]]:
    """Continuations of 4 to 8 tokens, as actions of an agent are."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, model.cfg.vocab_size, (1, time)).astype(np.int32)
    lengths = rng.integers(4, 9, (1, 16)).astype(np.int32)
    branches = rng.integers(3, model.cfg.vocab_size, (1, 16, 8)).astype(np.int32)
    rows = np.concatenate([np.repeat(prompt, 16, 0), branches[0]], axis=1)
    place = np.arange(rows.shape[1])
    scored = (place >= time) & (place < time + lengths[0][:, None])
    length = np.array([time], np.int32)

    def ours() -> jax.Array:
        return score_continuations(model.params, model.cfg, prompt, length, branches, lengths).total

    def whole_rows() -> jax.Array:
        return token_logprobs(model.params, model.cfg, rows, scored).sum(1)

    harness.require_equal([ours()[0]], [whole_rows()], 5e-3)
    timings = harness.compare({"ours": ours, "whole rows": whole_rows}, repetitions)
    return harness.cpu_rows(f"16 continuations of {time} tokens", timings, _SCORING_TARGET)


def _memory_of_gemma(time: int) -> dict[str, Any]:
    model = load("pkg:gemma3-270m")
    cfg, params = model.cfg, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
    tokens = jax.ShapeDtypeStruct((1, time), jnp.int32)
    program = (
        jax.jit(lambda params, tokens: token_logprobs(params, cfg, tokens)).lower(params, tokens).compile()
    )
    scores = 4 * time * cfg.vocab_size
    taken = program.memory_analysis().temp_size_in_bytes
    return {
        "what": f"memory of losses of Gemma, {time} tokens",
        "who": "ours",
        "megabytes": round(taken / 1e6, 1),
        "megabytes_of_all_scores": round(scores / 1e6, 1),
        "share": round(taken / scores, 3),
        "target": 0.5,
    }


def _seconds_a_token(
    model: Model, params: Any, prompt: np.ndarray, new: int, repetitions: int
) -> tuple[float, float, np.ndarray]:
    """Wall and CPU seconds of a token after the first, and the tokens."""

    def text(count: int) -> np.ndarray:
        lengths = jnp.asarray([len(prompt)])
        made = generate(
            params, model.cfg, jnp.asarray(prompt[None]), lengths, jax.random.key(0), max_new=count
        )
        return np.asarray(made.tokens[0])

    timings = harness.compare(
        {"one": functools.partial(text, 1), "all": functools.partial(text, new)}, repetitions
    )
    wall = timings["all"].median - timings["one"].median
    cpu = float(np.median(timings["all"].cpu) - np.median(timings["one"].cpu))
    return wall / (new - 1), cpu / (new - 1), text(new)
