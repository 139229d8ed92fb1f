"""Tokenizers built from what a GGUF file says about them, as `transformers.PreTrainedTokenizerFast`.

Two kinds occur. "gpt2" is byte-level BPE with a merge list, whose way of cutting text into words is named by
`tokenizer.ggml.pre`. "llama" is SentencePiece BPE: no merge list, but scores, from which the merges are
recovered.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.errors import InputError, ResourceError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"
_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")

# Token types of GGUF.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_SPACE = "\u2581"  # how SentencePiece writes a space

# How text is cut into words before BPE, by `tokenizer.ggml.pre`: a pattern, or None for that of GPT-2.
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _CL100K.replace("DIGITS", r"\p{N}{1,3}"),
    "qwen2": _CL100K.replace("DIGITS", r"\p{N}"),
}
# Words cut the digits apart first, each by itself.
_SINGLE_DIGITS = ("smollm",)
# A word that is a token by itself stays whole even if no sequence of merges leads to it.
_WHOLE_WORDS = ("llama-bpe",)


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, source: str) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file describes.

    Args:
      metadata: as `read_gguf` returns it.
      source: name of the file, for error messages.

    Returns:
      A tokenizer with special tokens and, where the file has one, a chat template.

    Raises:
      InputError: the metadata holds no tokenizer, or one of a kind that is not supported.
      ResourceError: transformers is not installed.
    """
    for key in ("model", "tokens", "token_type"):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise InputError(f"{source}: tokenizer.ggml.{key} is missing: the file holds no tokenizer")
    import_transformers()
    model = metadata["tokenizer.ggml.model"]
    if model == "gpt2":
        tokenizer = _byte_level_bpe(metadata, source)
    elif model == "llama":
        tokenizer = _sentencepiece_bpe(metadata, source)
    else:
        raise InputError(f"{source}: tokenizer.ggml.model is {model!r}; supported are gpt2, llama")
    return _wrap(tokenizer, metadata)


def tokenizer_from_directory(directory: Path, *, vocab_size: int) -> "PreTrainedTokenizerFast":
    """The tokenizer saved in a Hugging Face directory, exactly as its `tokenizer.json` says.

    Args:
      directory: holds `tokenizer.json`, usually also `tokenizer_config.json` and `chat_template.jinja`.
      vocab_size: rows of the model's embedding.

    Raises:
      InputError: `tokenizer.json` is missing or unreadable, or has ids that the model does not have.
      ResourceError: transformers is not installed.
    """
    file = directory / TOKENIZER
    if not file.is_file():
        raise InputError(
            f"{file}: is missing; a model directory needs its tokenizer there"
            " (tokenizer.save_pretrained writes it)"
        )
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(
            f"{file}: is not valid JSON ({error}): it is cut short or damaged, get it again"
        ) from error
    # What the libraries below need and would not say themselves.
    if not isinstance(content, dict) or not {"model", "added_tokens"} <= content.keys():
        raise InputError(f"{file}: is not a tokenizer: it lacks 'model' or 'added_tokens'")
    if content["model"].get("type", "BPE") not in _MODELS:
        raise InputError(
            f"{file}: model type {content['model']['type']!r}; supported are {', '.join(_MODELS)}"
        )
    tokenizer = import_transformers().PreTrainedTokenizerFast.from_pretrained(
        directory, local_files_only=True
    )
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise InputError(
            f"{file}: has token ids up to {largest}, but the model's vocabulary has {vocab_size} entries:"
            " the tokenizer belongs to another model"
        )
    return tokenizer


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts the beginning-of-sequence token in front of every text."""
    implied = metadata.get("tokenizer.ggml.model") == "llama"
    has_bos = "tokenizer.ggml.bos_token_id" in metadata
    return has_bos and bool(metadata.get("tokenizer.ggml.add_bos_token", implied))


def import_transformers() -> Any:
    """The `transformers` package.

    Raises:
      ResourceError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ResourceError("transformers is not installed; run: pip install 'jaxlab[models]'") from error
    return transformers


def _byte_level_bpe(metadata: Mapping[str, Any], source: str) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if words not in _WORDS:
        raise InputError(f"{source}: tokenizer.ggml.pre is {words!r}; supported are {', '.join(_WORDS)}")
    if "tokenizer.ggml.merges" not in metadata:
        raise InputError(f"{source}: tokenizer.ggml.merges is missing")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocabulary(metadata), merges=merges, ignore_merges=words in _WHOLE_WORDS)
    )
    pattern = _WORDS[words]
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    if words in _SINGLE_DIGITS:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: Mapping[str, Any], source: str) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers

    if "tokenizer.ggml.scores" not in metadata:
        raise InputError(f"{source}: tokenizer.ggml.scores is missing")
    tokens = metadata["tokenizer.ggml.tokens"]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_vocabulary(metadata),
            merges=recover_merges(
                tokens, metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
            ),
            unk_token=None if unknown is None else tokens[unknown],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    to_space = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
        to_space.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(to_space)
    return tokenizer


def recover_merges(
    tokens: Sequence[str], scores: Sequence[float], token_types: Sequence[int]
) -> list[tuple[str, str]]:
    """Merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece joins the neighbouring pair whose union has the highest score. So each way of cutting a
    piece into two pieces is a merge, ranked by the piece's score.

    Args:
      tokens: V pieces.
      scores: V scores, higher is joined first.
      token_types: V token types; only normal pieces (1) take part.

    Returns:
      Pairs of pieces.
    """
    pieces = {token for token, kind in zip(tokens, token_types, strict=True) if kind == _NORMAL}
    order = sorted(
        range(len(tokens)), key=lambda index: -scores[index]
    )  # stable: equal scores keep their order
    merges = []
    for token in (tokens[index] for index in order):
        if token not in pieces:
            continue
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in pieces:
                right = token[cut:]
                if right in pieces:
                    merges.append((left, right))
    return merges


def _vocabulary(metadata: Mapping[str, Any]) -> dict[str, int]:
    return {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def _wrap(tokenizer: "tokenizers.Tokenizer", metadata: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """Adds special tokens, the beginning-of-sequence rule and the chat template."""
    from tokenizers import AddedToken, processors

    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    by_type: dict[int, list[str]] = {_CONTROL: [], _USER_DEFINED: []}
    for token, kind in zip(tokens, types.tolist(), strict=True):
        if kind in by_type:
            by_type[kind].append(token)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in by_type[_CONTROL]]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in by_type[_USER_DEFINED]])

    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {}
    for short, long in names.items():
        index = metadata.get(f"tokenizer.ggml.{long}_token_id")
        if index is not None:
            special[f"{short}_token"] = tokens[index]
    if adds_bos(metadata):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", "$B"],
            special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])],
        )
    architecture = metadata.get("general.architecture")
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=metadata.get(f"{architecture}.context_length"),
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        **special,
    )
