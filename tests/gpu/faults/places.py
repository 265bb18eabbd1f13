"""Finds the place of a fault: tokens inside a definition, whatever their layout.

A pattern is source text in which spaces, line breaks and comments mean nothing, and in which

- ``$name`` stands for an operand: a literal, or a name with the names it is a member of;
- ``$*name`` stands for any tokens, as few as possible.

A wildcard that is used twice stands for the same tokens. A pattern therefore survives another
layout of the source and other names of its variables. Functions, types, members and constants are
named as they are.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

COMMENTS = {".py": r"\#[^\n]*"}
C_COMMENTS = r"//[^\n]*|/\*.*?\*/|\\\n"
STRING = r"""
      (?P<string>
        (?P<opens> [fr]? (?P<quote> \"{3} | " | ')) (?P<content> (?: \\. | .)*?) (?P=quote))
    | """
TOKEN = r"""
      (?P<wildcard> \$\*?\w+)
    | (?P<word> [^\W\d]\w* | \d(?:\w|\.\d|\.(?=[\sf,;)])|(?<=[eE])[+-])*)
    | (?P<joint> -> | \.)
    | (?P<sign> <<= | >>= | << | >> | && | \|\| | \+\+ | -- | [-+*/%&|^<>=!]= | \S)
"""
WILDCARD = re.compile(r"\$\*?\w+")


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


Spans = dict[str, tuple[int, int]]
"""The first token and the one behind the last, by wildcard."""


@dataclass(frozen=True)
class Place:
    """Where a pattern matches."""

    start: int
    end: int
    bound: dict[str, str]
    """The source text that each wildcard stands for."""

    def filled(self, replacement: str) -> str:
        """``replacement`` with source text in place of its wildcards."""
        return WILDCARD.sub(lambda wildcard: self.bound[wildcard.group()], replacement)


@cache
def tokens_of(text: str, suffix: str) -> tuple[Token, ...]:
    """Without comments, and without a comma before a closing bracket, which layouts add.

    A string's quotes and the words between them are tokens too.
    """
    comment = COMMENTS.get(suffix, C_COMMENTS)
    grammar = re.compile(rf"(?P<comment>{comment})|{STRING}{TOKEN}", re.VERBOSE | re.DOTALL)
    found: list[Token] = []
    for match in grammar.finditer(text):
        if match.lastgroup == "comment":
            continue
        if match["string"] is None:
            found.append(Token(str(match.lastgroup), match.group(), match.start(), match.end()))
            continue
        found.append(Token("opens", match["opens"], match.start(), match.end("opens")))
        words = re.finditer(TOKEN, match["content"], re.VERBOSE | re.DOTALL)
        first = match.start("content")
        found += [Token("text", w.group(), first + w.start(), first + w.end()) for w in words]
        found.append(Token("closes", match["quote"], match.end("content"), match.end()))
    return tuple(
        token
        for token, after in zip(found, [*found[1:], None], strict=True)
        if token[:2] != ("sign", ",") or after is None or _depth(after) >= 0
    )


def places(text: str, suffix: str, inside: str, pattern: str) -> list[Place]:
    """Every place of a pattern.

    Args:
        text: the source.
        suffix: of the source's file.
        inside: a function, class or struct; every definition of that name is searched. Empty: the
            whole source.
        pattern: see above.
    """
    tokens, wanted = tokens_of(text, suffix), tokens_of(pattern, suffix)
    found = []
    for start, end in definitions(text, suffix, inside) if inside else [(0, len(text))]:
        scope = [token for token in tokens if start <= token.start < end]
        for at in range(len(scope)):
            match = _match(scope, at, wanted, {})
            if match is not None:
                last, spans = match
                bound = {
                    name: text[scope[a].start : scope[b - 1].end] if a < b else ""
                    for name, (a, b) in spans.items()
                }
                found.append(Place(scope[at].start, scope[last - 1].end, bound))
    return found


def definitions(text: str, suffix: str, name: str) -> Iterator[tuple[int, int]]:
    """Where the definitions of a name begin and end."""
    if suffix == ".py":
        lines = [0]
        for line in text.splitlines(keepends=True):
            lines.append(lines[-1] + len(line))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                yield lines[node.lineno - 1], lines[node.end_lineno or node.lineno]
        return
    tokens = tokens_of(text, suffix)
    for at, token in enumerate(tokens):
        body = at + 1
        if token.text != name or body == len(tokens):
            continue
        if tokens[body].text == "(":
            body = _behind(tokens, body)
        while body < len(tokens) and tokens[body].text in ("const", "noexcept"):
            body += 1
        if body < len(tokens) and tokens[body].text == "{":
            yield token.start, tokens[_behind(tokens, body) - 1].end


def _behind(tokens: Sequence[Token], at: int) -> int:
    """Behind the bracket that closes the one at ``at``."""
    depth = 0
    for place in range(at, len(tokens)):
        depth += _depth(tokens[place])
        if depth == 0:
            return place + 1
    return len(tokens)


def _depth(token: Token) -> int:
    """1 for an opening bracket, -1 for a closing one."""
    if token.kind != "sign":
        return 0
    return (token.text in "([{") - (token.text in ")]}")


def _match(
    tokens: Sequence[Token], at: int, pattern: Sequence[Token], spans: Spans
) -> tuple[int, Spans] | None:
    """Where a match of the whole pattern that begins at ``at`` ends."""
    if not pattern:
        return at, spans
    wanted, rest = pattern[0], pattern[1:]
    if wanted.kind != "wildcard":
        same = at < len(tokens) and tokens[at].text == wanted.text
        return _match(tokens, at + 1, rest, spans) if same else None
    for end in _ends(tokens, at, wanted.text, spans):
        found = _match(tokens, end, rest, spans | {wanted.text: (at, end)})
        if found is not None:
            return found
    return None


def _ends(tokens: Sequence[Token], at: int, wildcard: str, spans: Spans) -> Iterator[int]:
    """Where a wildcard's tokens may end, the likeliest first."""
    if wildcard in spans:
        first, last = spans[wildcard]
        end = at + last - first
        if [t.text for t in tokens[first:last]] == [t.text for t in tokens[at:end]]:
            yield end
    elif wildcard.startswith("$*"):
        yield from range(at, len(tokens) + 1)
    elif at < len(tokens) and tokens[at].kind == "opens":
        yield next(n for n in range(at, len(tokens)) if tokens[n].kind == "closes") + 1
    elif at < len(tokens) and tokens[at].kind == "word" and tokens[at - 1].kind != "joint":
        ends = [at + 1]
        while [token.kind for token in tokens[ends[-1] : ends[-1] + 2]] == ["joint", "word"]:
            ends.append(ends[-1] + 2)
        yield from reversed(ends)
