"""What every token of a vocabulary adds to an allele, in tables, so that whole distributions over tokens become
distributions over alleles.
"""

import codecs
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxlab.errors import InputError
from jaxlab.phylogeny.alleles import allele_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Continuation(NamedTuple):
    """What each token makes of an allele that is not complete yet."""

    texts: tuple[str, ...]
    """Different alleles that may come out, whole ones or beginnings."""
    text_of: Int[np.ndarray, " vocabulary"]
    """Which of them each token makes."""
    complete: Bool[np.ndarray, " vocabulary"]
    """Whether no further token can change it."""


class TokenTexts:
    """The bytes of every token, and the alleles they make after given bytes."""

    def __init__(
        self, pieces: tuple[bytes, ...], ends: Sequence[int], *, length: int = 4, strip: bool = True
    ) -> None:
        """Keeps the options.

        Args:
          pieces: of every token; nothing for special ones. See `token_pieces`.
          ends: tokens that end a completion.
          length: see `allele_of`.
          strip: see `allele_of`.
        """
        self.pieces = pieces
        self.length = length
        self.strip = strip
        self._ends = np.isin(np.arange(len(pieces)), ends)
        # Tokens that may go on with an unfinished character; all others leave it unfinished for good.
        self._continuing = [token for token, piece in enumerate(pieces) if piece and 0x80 <= piece[0] < 0xC0]
        self._table = functools.lru_cache(maxsize=64)(self._new_table)

    def after(self, before: bytes) -> tuple[str, Continuation]:
        """What every token makes after these bytes, which make no complete allele.

        Returns:
          The beginning of all alleles, and what comes after it.
        """
        text, unfinished = _decoded(before)
        if "\ufffd" in text:
            return "", self._table(before, self.length, self.strip)
        begun = allele_of(text, length=self.length, strip=self.strip)
        if begun or not self.strip:
            return begun, self._table(unfinished, self.length - len(begun), False)
        # Of what was stripped it matters only whether newlines have begun: spaces after them stay.
        return "", self._table((b"\n" if "\n" in text else b"") + unfinished, self.length, True)

    def _new_table(self, before: bytes, length: int, strip: bool) -> Continuation:
        number: dict[str, int] = {}
        text_of = np.empty(len(self.pieces), np.int32)
        complete = self._ends.copy()
        tokens: Sequence[int] = range(len(self.pieces))
        unfinished = _decoded(before)[1]
        if unfinished:
            # A whole sign for what cannot be decoded stands there, unless the token goes on with the character.
            like = self._table(before.removesuffix(unfinished) + "\ufffd".encode(), length, strip)
            number = {text: i for i, text in enumerate(like.texts)}
            text_of, complete, tokens = like.text_of.copy(), like.complete.copy(), self._continuing
        for token in tokens:
            whole = before if self._ends[token] else before + self.pieces[token]
            allele = allele_of(whole.decode("utf-8", "replace"), length=length, strip=strip)
            text_of[token] = number.setdefault(allele, len(number))
            complete[token] = self._ends[token] or len(allele) == length
        return Continuation(tuple(number), text_of, complete)


@functools.lru_cache(maxsize=4)
def token_texts(pieces: tuple[bytes, ...], ends: tuple[int, ...], *, length: int, strip: bool) -> TokenTexts:
    """`TokenTexts` whose tables are shared by all models of one vocabulary."""
    return TokenTexts(pieces, ends, length=length, strip=strip)


def _decoded(content: bytes) -> tuple[str, bytes]:
    """The text of these bytes, and the bytes at their end that begin another character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(content), decoder.getstate()[0]


def token_pieces(tokenizer: "PreTrainedTokenizerFast", *, vocabulary: int) -> tuple[bytes, ...]:
    """The bytes that each token stands for: those of all tokens of a text, one after the other, are the text.

    Args:
      tokenizer: byte-level BPE, or SentencePiece with bytes for unknown characters.
      vocabulary: how many tokens the model has; those that the tokenizer does not know have no bytes.

    Raises:
      InputError: another kind of tokenizer.
    """
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    special = set(tokenizer.all_special_ids)
    known = min(vocabulary, len(tokenizer))
    names = tokenizer.convert_ids_to_tokens(list(range(known)))
    added = tokenizer.added_tokens_decoder
    if '"ByteLevel"' in decoder:
        table = _byte_level_alphabet()

        def piece(name: str) -> bytes:
            return bytes(table[character] for character in name)

    elif '"ByteFallback"' in decoder:

        def piece(name: str) -> bytes:
            if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                return bytes([int(name[3:5], 16)])
            return name.replace("\u2581", " ").encode()

    else:
        raise InputError(
            f"the tokenizer decodes by {decoder}; exact probabilities need a byte-level or a SentencePiece one"
        )
    pieces = [
        b"" if i in special or name is None else name.encode() if i in added else piece(name)
        for i, name in enumerate(names)
    ]
    return tuple(pieces + [b""] * (vocabulary - known))


def _byte_level_alphabet() -> dict[str, int]:
    """Characters by which GPT-2 writes bytes: printable ones stand for themselves, the others are moved up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    moved = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(moved)}
