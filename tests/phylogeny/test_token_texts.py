"""Tables of what tokens add to alleles, for real vocabularies, against the tokenizers' own decoding."""

import random

import pytest
from letter_model import toy_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxlab.errors import InputError
from jaxlab.models.gguf import read_gguf
from jaxlab.models.loading import resolve
from jaxlab.models.tokenizers import tokenizer_from_gguf
from jaxlab.phylogeny.alleles import allele_of
from jaxlab.phylogeny.token_texts import TokenTexts, token_pieces

TEXT = "def f(x):\n    return 'na\u00efve \u6f22\u5b57 \U0001f600'  # \t end\n\nIt's 3.5 %\n"


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request):
    """SmolLM2's; and one of SentencePiece's kind, with bytes for what it does not know."""
    if request.param == "byte-level":
        metadata = read_gguf(resolve("pkg:smollm2")).metadata
        return tokenizer_from_gguf(metadata, source="pkg:smollm2")
    pieces = [
        "<eos>",
        "\u2581",
        "\u2581the",
        "d",
        "e",
        "f",
        "\n",
        "\u6f22",
        *[f"<0x{i:02X}>" for i in range(256)],
    ]
    whole = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    whole.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>")


def test_pieces_of_a_text_are_its_bytes(tokenizer):
    pieces = token_pieces(tokenizer, vocabulary=len(tokenizer) + 3)
    assert len(pieces) == len(tokenizer) + 3 and pieces[-1] == b""
    ids = tokenizer(TEXT.replace(" ", "\u2581") if len(tokenizer) < 999 else TEXT)["input_ids"]
    assert b"".join(pieces[i] for i in ids).decode() == TEXT


def test_alleles_of_paths_are_those_of_the_decoded_text(tokenizer):
    """Random tokens, whole characters and parts of them, spaces and newlines in every order."""
    pieces = token_pieces(tokenizer, vocabulary=len(tokenizer))
    kept = kept_tokens(tokenizer, pieces)
    texts = {strip: TokenTexts(tuple(pieces[i] for i in kept), [0], strip=strip) for strip in (True, False)}
    rng = random.Random(0)
    for strip in (True, False) * 60:
        path, complete = [], False
        while not complete and len(path) < 5:
            begun, table = texts[strip].after(b"".join(pieces[kept[i]] for i in path))
            path.append(rng.randrange(len(kept)))
            content = b"".join(pieces[kept[i]] for i in path)
            if len(tokenizer) < 999 and "\ufffd" in content.decode("utf-8", "replace"):
                break  # bytes that are no text are replaced all together by SentencePiece
            text = tokenizer.decode(
                [kept[i] for i in path], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            expected = allele_of(text, strip=strip)
            assert begun + table.texts[table.text_of[path[-1]]] == expected
            complete = bool(table.complete[path[-1]])
            assert complete == (len(expected) == 4 or path[-1] == 0)


def kept_tokens(tokenizer, pieces):
    """The end of a text first; then tokens of few bytes, and a few of many."""
    short = [i for i, piece in enumerate(pieces) if 0 < len(piece) < 3]
    return [tokenizer.eos_token_id, *short[:400], *range(300, len(pieces), 500)]


def test_tables_are_shared_by_paths_that_need_the_same():
    model = toy_model()
    texts = TokenTexts(token_pieces(model.tokenizer, vocabulary=13), [0])
    assert texts.after(b" ")[1] is texts.after(b"   ")[1]
    assert texts.after(b" \n")[1] is texts.after(b"\n\n")[1]
    assert texts.after(b" \n")[1] is not texts.after(b" ")[1]
    assert texts.after(b"a")[1] is texts.after(b" b")[1] and texts.after(b" b")[0] == "b"
    assert texts.after(b"a\xc3")[1] is not texts.after(b"a")[1]


def test_a_tokenizer_of_another_kind_is_refused():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(InputError, match="the tokenizer decodes by null"):
        token_pieces(words, vocabulary=1)
