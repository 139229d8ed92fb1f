"""Trees as Newick text, in and out.

Labels that are not plain words are quoted, and quotes in them doubled, so that dendropy, Biopython, ete and FigTree
read them back. Numbers at inner nodes are supports. Reference: Olsen, "Interpretation of the Newick's 8:45 tree format
standard", 1990.
"""

import math
import re
from typing import NamedTuple

from jaxlab.errors import InputError
from jaxlab.phylogeny.trees import Phylogeny, from_children

_PLAIN = re.compile(r"[^\s()\[\]{},:;'\"_=]+")
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>\[[^\]]*\])|(?P<mark>[(),:;])|'(?P<quoted>(?:[^']|'')*)'|(?P<word>[^\s()\[\],:;']+)"""
)


def to_newick(tree: Phylogeny, *, lengths: bool = True, supports: bool = True) -> str:
    """The tree as one line of Newick; reading it back gives the same numbers.

    Args:
      tree: any.
      lengths: whether to write lengths, where they are known.
      supports: whether to write supports at the inner nodes that have no name.
    """
    ends = [""] * len(tree.names)
    for node, (name, support) in enumerate(zip(tree.names, tree.supports, strict=True)):
        if name:
            ends[node] = label(name, inner=node >= len(tree.taxa))
        elif supports and not math.isnan(support):
            ends[node] = repr(float(support))
    if lengths:
        for node, length in enumerate(tree.lengths[:-1]):
            ends[node] += "" if math.isnan(length) else f":{float(length)!r}"
    whole: list[str] = []
    for below, end in zip(tree.children, ends, strict=True):
        whole.append(f"({','.join(whole[node] for node in below)}){end}" if below else end)
    return whole[-1] + ";"


def from_newick(text: str) -> Phylogeny:
    """The tree that a Newick text describes. Comments in brackets are passed over, as is a length at the top.

    Underscores stay underscores, as model names have them. A number that is not quoted at an inner node is its support.

    Args:
      text: one tree, with its semicolon.

    Raises:
      InputError: the text is not one whole tree; the message says where.
    """
    return _Reader(text).tree()


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Reader:
    """Nodes in the order in which they end, with the open ones on a stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        self.lengths: list[float] = []
        self.supports: list[float] = []
        self.children: list[list[int]] = []

    def tree(self) -> Phylogeny:
        """Reads all of the text."""
        tokens = self._tokens()
        open_nodes: list[list[int]] = []
        at, ended = 0, False
        while not ended:
            while tokens[at].text == "(" and tokens[at].kind == "mark":
                open_nodes.append([])
                at += 1
            at, node = self._node(tokens, at, [])
            while True:
                token = tokens[at]
                at += 1
                if token.kind != "mark" or token.text not in ",);":
                    raise self._error(token, "expected ',', ')' or ';'")
                if token.text == ";":
                    ended = True
                    break
                if not open_nodes:
                    raise self._error(token, "no '(' is open here")
                open_nodes[-1].append(node)
                if token.text == ",":
                    break
                at, node = self._node(tokens, at, open_nodes.pop())
        if open_nodes:
            raise self._error(tokens[at - 1], f"{len(open_nodes)} '(' are still open")
        if tokens[at].kind != "end":
            raise self._error(tokens[at], "one tree must be all there is")
        if not self.children[-1]:
            raise self._error(tokens[0], "a tree must have at least one pair of parentheses")
        return from_children(self.names, self.lengths, self.supports, self.children)

    def _node(self, tokens: list[_Token], at: int, children: list[int]) -> tuple[int, int]:
        """Reads label and length of a node whose children are known: where to go on, and its number."""
        name, support, length = "", math.nan, math.nan
        token = tokens[at]
        if token.kind in ("word", "quoted"):
            name, at = token.text, at + 1
            if children and token.kind == "word" and (number := _number(name)) is not None:
                name, support = "", number
        elif not children:
            raise self._error(token, "a taxon must have a name")
        if tokens[at].kind == "mark" and tokens[at].text == ":":
            token, at = tokens[at + 1], at + 2
            found = _number(token.text) if token.kind == "word" else None
            if found is None:
                raise self._error(token, "a length must be a number")
            length = found
        self.names.append(name)
        self.supports.append(support)
        self.lengths.append(length)
        self.children.append(children)
        return at, len(self.names) - 1

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self._error(_Token("", "", at), "a quote or comment does not end")
            kind = str(match.lastgroup)
            if kind not in ("space", "comment"):
                tokens.append(_Token(kind, match[kind].replace("''", "'"), at))
            at = match.end()
        end = _Token("end", "", len(self.text))
        # Two ends, so that looking one further than a length's colon is safe.
        return [*tokens, end, end]

    def _error(self, token: _Token, wanted: str) -> InputError:
        near = self.text[token.start : token.start + 20]
        found = repr(near) if near else "the end of the text"
        return InputError(f"Newick text has {found} at position {token.start}: {wanted}")


def label(name: str, *, inner: bool = False) -> str:
    """A name as Newick and NEXUS write it: quoted unless it is a plain word.

    Args:
      name: not empty.
      inner: whether it is that of an inner node, where a number would be read as a support.
    """
    if _PLAIN.fullmatch(name) and not (inner and _number(name) is not None):
        return name
    return "'" + name.replace("'", "''") + "'"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
