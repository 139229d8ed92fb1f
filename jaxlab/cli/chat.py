"""`jaxlab chat MODEL`: talk to a model on the terminal, or ask one question from a script."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxlab import info
from jaxlab.cli.compilation import keep_compiled_programs
from jaxlab.cli.options import parse
from jaxlab.errors import InputError
from jaxlab.progress import Progress

if TYPE_CHECKING:
    from jaxlab.models import Model

Message = dict[str, str]


@dataclass(frozen=True)
class Options:
    """Whom to talk to, and how it answers."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "pkg:smollm2"
    """pkg:NAME, a Hugging Face directory, a quantized directory, a .gguf file, or hf:ORG/NAME."""
    prompt: str | None = None
    """Ask this one question, print the answer and stop; None opens a conversation."""
    system: str | None = None
    """System message; None leaves it to the model's chat template."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model as it is."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities reach this sum, in (0, 1]."""
    min_p: float = 0.0
    """Leave out tokens less probable than this fraction of the likeliest, in [0, 1]."""
    max_new: int = 256
    """Longest answer in tokens."""
    seed: int = 0
    """Seed of the sampling."""


def chat(argv: list[str]) -> int:
    """Answers one prompt, or holds a conversation until Ctrl-D."""
    description = "Talk to a model. In a conversation, /reset forgets what was said and Ctrl-D ends it."
    options = parse(Options, argv, command="chat", description=description)
    info.require(("models",), purpose="jaxlab chat")
    keep_compiled_programs()
    from jaxlab.models import load

    with Progress(quiet=not sys.stderr.isatty()).stage(f"loading {options.model}"):
        model = load(options.model)
    if not model.tokenizer.chat_template:
        raise InputError(
            f"{options.model} has no chat template: it was not trained to chat, choose another model"
        )
    start: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        question: Message = {"role": "user", "content": options.prompt}
        sys.stdout.write(answer(model, [*start, question], options, turn=0) + "\n")
        return 0
    _converse(model, start, options)
    return 0


def answer(model: "Model", messages: list[Message], options: Options, *, turn: int) -> str:
    """The model's next message.

    Raises:
      InputError: the conversation and the answer together exceed the model's positions.
    """
    import jax
    import numpy as np

    from jaxlab.models import generate

    tokenizer = model.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    result = generate(
        model.params,
        model.cfg,
        ids[None],
        np.asarray([len(ids)], np.int32),
        jax.random.fold_in(jax.random.key(options.seed), turn),
        max_new=options.max_new,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        stop_ids=model.cfg.eos_ids,
    )
    tokens = np.asarray(result.tokens[0, : int(result.lengths[0])])
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _converse(model: "Model", start: list[Message], options: Options) -> None:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its editing and history)

    messages, turn = list(start), 0
    while True:
        try:
            said = input("you> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if said == "/reset":
            messages = list(start)
        elif said:
            question: Message = {"role": "user", "content": said}
            try:
                reply = answer(model, [*messages, question], options, turn=turn)
            except InputError as error:
                sys.stdout.write(f"error: {error}\n(/reset starts a new conversation)\n")
                continue
            messages += [question, {"role": "assistant", "content": reply}]
            turn += 1
            sys.stdout.write(f"{options.model}> {reply}\n")
