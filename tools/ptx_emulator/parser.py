"""Reads the text of a PTX module (PTX ISA, chapters 4 and 5) into a ``Kernel``."""

import bisect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import Unsupported
from .operands import parse_operand, split_list
from .program import FIRST_SHARED, Instruction, Kernel, Parameter, SharedLayout
from .values import DTYPES

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_DIRECTIVE = re.compile(r"\.(reqntid|maxntid|reqnctapercluster)\s+([\d, ]+)")
_VARIABLE = re.compile(
    r"(?:\.(?P<linkage>extern|visible|weak)\s+)?\.(?P<space>shared|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<kind>\w+)\s+(?P<name>[\w$]+)(?P<sizes>(?:\[\d*\])*)"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_STATEMENT = re.compile(
    r"(?:@(?P<negated>!?)\s*(?P<guard>%?[\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<rest>.*)"
)
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*?(?:inlined_at\s+(\d+)\s+(\d+)[^\n]*)?(?=\n|$)")


@dataclass
class _Scope:
    """Names declared between one pair of braces."""

    number: int
    parent: "_Scope | None"
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        return f"{name}@{self.number}" if self.number else name

    def find_register(self, name: str) -> str | None:
        if name in self.registers:
            return self.unique(name)
        return self.parent.find_register(name) if self.parent else None

    def find_label(self, name: str) -> str | None:
        if name in self.labels:
            return self.unique(name)
        return self.parent.find_label(name) if self.parent else None


@dataclass(frozen=True)
class _Statement:
    text: str
    line: int
    origin: str
    scope: _Scope


def parse(text: str, entry: str | None = None) -> Kernel:
    """The kernel ``entry`` of a module; the only one, or the one whose name holds ``entry``."""
    # Drop comments but keep line numbers, which messages name.
    clean = re.sub(r"//[^\n]*", "", text)
    clean = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), clean, flags=re.S)
    header = _find_entry(clean, entry)
    end = _closing_brace(clean, header.end())
    body = clean[header.end() : end]
    first_line = clean.count("\n", 0, header.end()) + 1
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', clean))
    statements, scopes = _statements(body, first_line, files)
    # Variables of other functions are not this kernel's.
    module_level = re.sub(r"\.entry[^{]*\{.*?\n\}", "", clean, flags=re.S)
    variables = [*_VARIABLE.finditer(module_level), *_VARIABLE.finditer(body)]
    shared = _shared_layout([v for v in variables if v["space"] == "shared"])
    local, local_bytes = _offsets([v for v in variables if v["space"] == "local"])
    instructions = tuple(_instruction(s) for s in statements)
    target = re.search(r"\.target\s+(\w+)", clean)
    used = {i.operands[0].name for i in instructions if i.parts[0] == "bra"}  # type: ignore[union-attr]
    return Kernel(
        name=header.group(1),
        target=target.group(1) if target else "",
        parameters=tuple(_parameter(p) for p in header.group(2).split(",") if p.strip()),
        instructions=instructions,
        labels={
            scope.unique(name): number
            for scope in scopes
            for name, number in scope.labels.items()
            if scope.unique(name) in used
        },
        registers={
            scope.unique(name): kind for scope in scopes for name, kind in scope.registers.items()
        },
        shared=shared,
        local=local,
        local_bytes=local_bytes,
        directives={
            name: tuple(int(n) for n in sizes.replace(" ", "").split(","))
            for name, sizes in _DIRECTIVE.findall(header.group(3))
        },
    )


def entries(text: str) -> list[str]:
    """Names of the kernels in a module."""
    return [match.group(1) for match in _ENTRY.finditer(re.sub(r"//[^\n]*", "", text))]


def _find_entry(clean: str, entry: str | None) -> re.Match[str]:
    found = [m for m in _ENTRY.finditer(clean) if entry is None or entry in m.group(1)]
    exact = [m for m in found if m.group(1) == entry]
    if len(exact or found) != 1:
        names = ", ".join(m.group(1) for m in _ENTRY.finditer(clean)) or "none"
        raise Unsupported(f"want one kernel named {entry or 'anything'}, the module has: {names}")
    return (exact or found)[0]


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise Unsupported("a kernel's body has no end")


def _statements(
    body: str, first_line: int, files: dict[str, str]
) -> tuple[list[_Statement], list[_Scope]]:
    """Executable statements in order, and the scopes with all registers and labels."""
    scope = _Scope(0, None)
    scopes = [scope]
    result: list[_Statement] = []
    origin = ""
    line_ends = [match.start() for match in re.finditer("\n", body)]
    for text, position in _pieces(body):
        if loc := _LOC.match(text):
            origin = _origin(loc, files) or origin
        elif text == "{":
            scope = _Scope(len(scopes), scope)
            scopes.append(scope)
        elif text == "}":
            assert scope.parent is not None
            scope = scope.parent
        elif text.endswith(":"):
            scope.labels[text[:-1].strip()] = len(result)
        elif declared := _REGISTERS.match(text):
            scope.registers |= _declared(declared.group(1), declared.group(2))
        elif not text.startswith("."):
            line = first_line + bisect.bisect(line_ends, position)
            result.append(_Statement(" ".join(text.split()), line, origin, scope))
    return result, scopes


def _origin(loc: re.Match[str], files: dict[str, str]) -> str:
    """``file:line``, and where that was inlined."""
    places = [
        f"{files[number].rsplit('/', 1)[-1]}:{line}"
        for number, line in ((loc.group(1), loc.group(2)), (loc.group(3), loc.group(4)))
        if number in files and line != "0"
    ]
    return ", in ".join(places)


def _pieces(body: str) -> Iterator[tuple[str, int]]:
    """Statements, labels, ``.loc`` lines and the braces of scopes, each with its position."""
    between = re.compile(r"[\s;]*")
    position = 0
    while (position := between.match(body, position).end()) < len(body):  # type: ignore[union-attr]
        if body[position] in "{}":
            piece = body[position]
        elif found := _LOC.match(body, position) or _LABEL.match(body, position):
            piece = found.group()
        else:
            end = body.find(";", position)
            piece = body[position : end if end >= 0 else len(body)]
        yield piece, position
        position += len(piece)


def _declared(kind: str, names: str) -> dict[str, str]:
    if kind not in DTYPES:
        raise Unsupported(f".reg .{kind}: registers of this type")
    result: dict[str, str] = {}
    for name in (n.strip() for n in names.split(",")):
        if several := re.fullmatch(r"(%?[\w$]+)<(\d+)>", name):
            for number in range(int(several.group(2))):
                result[f"{several.group(1)}{number}"] = kind
        else:
            result[name] = kind
    return result


def _instruction(statement: _Statement) -> Instruction:
    match = _STATEMENT.fullmatch(statement.text)
    if match is None:
        raise Unsupported(f"PTX line {statement.line}: no instruction in: {statement.text}")
    scope = statement.scope
    texts = split_list(match["rest"])
    if match["opcode"].split(".")[0] == "bra":
        label = scope.find_label(texts[0])
        if label is None:
            raise Unsupported(f"PTX line {statement.line}: no label {texts[0]}")
        texts = [label]
    guard = parse_operand(match["guard"], scope.find_register) if match["guard"] else None
    return Instruction(
        opcode=match["opcode"],
        operands=tuple(parse_operand(t, scope.find_register) for t in texts),
        guard=guard,  # type: ignore[arg-type]
        guard_negated=match["negated"] == "!",
        line=statement.line,
        source=statement.text,
        origin=statement.origin,
    )


def _parameter(text: str) -> Parameter:
    words = text.split()
    declared = re.fullmatch(r"([\w$]+)(?:\[(\d+)\])?", words[-1])
    kind = next(w[1:] for w in words if w[0] == "." and w[1:] in DTYPES)
    assert declared is not None
    if declared.group(2):
        return Parameter(declared.group(1), "bytes", int(declared.group(2)))
    return Parameter(declared.group(1), kind, DTYPES[kind].itemsize)


def _offsets(variables: list[re.Match[str]], start: int = 0) -> tuple[dict[str, int], int]:
    offsets, end = {}, start
    for v in variables:
        element = DTYPES[v["kind"]].itemsize
        align = int(v["align"] or element)
        end = -(-end // align) * align
        offsets[v["name"]] = end
        end += element * math.prod(int(size) for size in re.findall(r"\[(\d+)\]", v["sizes"]))
    return offsets, end


def _shared_layout(variables: list[re.Match[str]]) -> SharedLayout:
    static = [v for v in variables if v["linkage"] != "extern"]
    dynamic = [v for v in variables if v["linkage"] == "extern"]
    offsets, end = _offsets(static, FIRST_SHARED)
    # All unsized extern arrays start at the same place.
    alignment = max((int(v["align"] or 1) for v in dynamic), default=16)
    start = -(-end // alignment) * alignment
    return SharedLayout(offsets | {v["name"]: start for v in dynamic}, end, alignment)
