"""Tokenizers from GGUF metadata: known token ids, round trips, equality with independent definitions."""

import json
import sys

import numpy as np
import pytest
import tokenizers as rust
import transformers
from tokenizers import decoders, models, pre_tokenizers

from jaxlab.data import CORPORA, text
from jaxlab.errors import InputError, ResourceError
from jaxlab.models.gguf import read_gguf
from jaxlab.models.packages import weight_file
from jaxlab.models.tokenizers import recover_merges, tokenizer_from_directory, tokenizer_from_gguf

AWKWARD = "x\n    12\r\n\tdéjà vu  ☃😀 <b>1,234.5</b> \u00a0\u2028 don't THEY'LL \x00 e\u0301"


@pytest.fixture(scope="module")
def metadata():
    return read_gguf(weight_file("smollm2")).metadata


@pytest.fixture(scope="module")
def smol(metadata):
    return tokenizer_from_gguf(metadata, source="smollm2")


@pytest.fixture(scope="module")
def gemma():
    return tokenizer_from_gguf(read_gguf(weight_file("gemma3-270m")).metadata, source="gemma")


def test_known_ids_of_smollm2(smol):
    assert smol("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    assert len(smol) == 49152
    assert (smol.bos_token_id, smol.eos_token_id, smol.pad_token_id, smol.unk_token_id) == (1, 2, 2, 0)


def test_digits_are_cut_off_before_the_spaces(smol):
    assert smol.tokenize("x\n    12") == ["x", "ĊĠĠĠĠ", "1", "2"]


def test_smollm2_equals_the_tokenizer_of_its_published_description(smol, metadata):
    """Byte-level BPE after a digit step, built here with the library that the model was published with."""
    tokens = metadata["tokenizer.ggml.tokens"]
    reference = rust.Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        )
    )
    steps = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    reference.pre_tokenizer = pre_tokenizers.Sequence(steps)
    reference.decoder = decoders.ByteLevel()
    for sample in (
        text("sotu:test")[:60_000],
        text("sotu:history")[:60_000],
        AWKWARD,
        "for i in range(10):\n    x[ 3] = 42",
    ):
        assert smol(sample)["input_ids"] == reference.encode(sample).ids


def test_special_tokens_are_single_tokens_and_skipped_in_decoding(smol):
    ids = smol("<|im_start|>user\nHi<|im_end|>\n")["input_ids"]
    assert ids[0] == 1
    assert ids.count(2) == 1
    assert smol.decode(ids, skip_special_tokens=True) == "user\nHi\n"


def test_chat_is_rendered_as_the_model_expects(smol):
    chat = [{"role": "user", "content": "Hi"}]
    assert smol.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("corpus", ["sotu:fresh", "sotu:history"])
def test_text_survives_the_round_trip(smol, gemma, corpus):
    sample = text(corpus)[:60_000] + AWKWARD
    for tokenizer in (smol, gemma):
        assert tokenizer.decode(tokenizer(sample, add_special_tokens=False)["input_ids"]) == sample


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_whole_corpora_survive_the_round_trip(smol, gemma, corpus):
    sample = text(corpus)
    for tokenizer in (smol, gemma):
        backend = tokenizer.backend_tokenizer
        assert backend.decode(backend.encode(sample, add_special_tokens=False).ids) == sample


def test_known_ids_of_gemma_begin_with_bos(gemma):
    assert gemma("Hello world 123")["input_ids"] == [2, 9259, 1902, 236743, 236770, 236778, 236800]
    assert gemma("The capital of France is")["input_ids"] == [2, 818, 5279, 529, 7001, 563]
    assert len(gemma) == 262144


def test_bytes_outside_the_vocabulary_fall_back_to_byte_tokens(gemma):
    ids = gemma("a\U0010fffd", add_special_tokens=False)["input_ids"]
    assert gemma.convert_ids_to_tokens(ids) == ["a", "<0xF4>", "<0x8F>", "<0xBF>", "<0xBD>"]


def greedy_sentencepiece(word, score):
    """SentencePiece BPE by its definition: join the neighbours whose union scores highest, leftmost first."""
    symbols = list(word)
    while True:
        pairs = [
            (score.get(a + b, -np.inf), -i)
            for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
        ]
        best, position = max(pairs, default=(-np.inf, 0))
        if best == -np.inf:
            return symbols
        symbols[-position : -position + 2] = [symbols[-position] + symbols[-position + 1]]


def test_recovered_merges_of_gemma_encode_as_sentencepiece_does(gemma):
    metadata = read_gguf(weight_file("gemma3-270m")).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    score = {
        token: value
        for token, value, kind in zip(
            tokens, metadata["tokenizer.ggml.scores"].tolist(), types.tolist(), strict=True
        )
        if kind == 1
    }
    words = sorted(set(text("sotu:history")[:200_000].split()))[::11]
    assert len(words) > 400
    for word in words:
        if all(letter in score for letter in word):
            found = gemma.tokenize(word, add_special_tokens=False)
            assert found == greedy_sentencepiece(word, score), word


def test_merges_are_every_cut_into_two_pieces_best_first():
    tokens, scores = ["a", "b", "ab", "ba", "aba", "<s>"], [0.0, 0.0, -2.0, -1.0, -3.0, 0.0]
    merges = recover_merges(tokens, scores, [1, 1, 1, 1, 1, 3])
    assert merges == [("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")]


def test_llama_spaces_are_prefixed_and_stripped_again():
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "\u2581ab",
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 5),
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0]),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = tokenizer_from_gguf(metadata, source="toy")
    assert tokenizer.tokenize("ab a") == ["\u2581ab", "\u2581a"]
    ids = tokenizer("ab a")["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab a"
    assert tokenizer.decode(tokenizer("é")["input_ids"], skip_special_tokens=True) == "é"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("qwen2", ["I", "'LL", " pay", " ", "1", "2", "3", "4", "  \n", " now", "!?"]),
        ("llama-bpe", ["I", "'LL", " pay", " ", "123", "4", "  \n", " now", "!?"]),
        ("gpt-2", ["I", "'", "LL", " pay", " 1234", "  \n", " now", "!?"]),
        ("smollm", ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "  \n", " now", "!?"]),
    ],
)
def test_words_are_cut_by_the_named_rule(words, expected):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words,
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": np.ones(len(letters), np.int32),
        "tokenizer.ggml.merges": [],
    }
    tokenizer = tokenizer_from_gguf(metadata, source="toy").backend_tokenizer
    sample = "I'LL pay 1234  \n now!?"
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(sample)]
    assert [sample[a:b] for a, b in spans] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'; supported are gpt2, llama"),
        ({"tokenizer.ggml.pre": "viking"}, "'viking'; supported are gpt-2, smollm"),
        ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.model": "llama"}, "scores is missing"),
    ],
)
def test_unusable_metadata_is_named(metadata, change, message):
    changed = {key: value for key, value in {**metadata, **change}.items() if value is not None}
    with pytest.raises(InputError, match=f"some.gguf: .*{message}"):
        tokenizer_from_gguf(changed, source="some.gguf")


def test_missing_transformers_is_said(metadata, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'jaxlab\[models\]'"):
        tokenizer_from_gguf(metadata, source="smollm2")


def test_saved_tokenizer_loads_the_same_here_and_in_transformers(smol, tmp_path):
    smol.save_pretrained(tmp_path)
    ours = tokenizer_from_directory(tmp_path, vocab_size=len(smol))
    for again in (ours, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert again(AWKWARD)["input_ids"] == smol(AWKWARD)["input_ids"]
        assert again.chat_template == smol.chat_template
        assert again.eos_token == smol.eos_token


def test_missing_and_damaged_tokenizer_files_are_named(smol, tmp_path):
    with pytest.raises(InputError, match="tokenizer.json: is missing"):
        tokenizer_from_directory(tmp_path, vocab_size=49152)
    smol.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="tokenizer.json: is not valid JSON.*cut short"):
        tokenizer_from_directory(tmp_path, vocab_size=49152)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unheard"}}))
    with pytest.raises(InputError, match="tokenizer.json: is not a tokenizer"):
        tokenizer_from_directory(tmp_path, vocab_size=49152)


def test_tokenizer_of_another_model_is_refused(smol, tmp_path):
    smol.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ids up to 49151, but the model's vocabulary has 32000"):
        tokenizer_from_directory(tmp_path, vocab_size=32000)
