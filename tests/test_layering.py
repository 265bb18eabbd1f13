"""Imports go one way, and files and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wavalign_fast"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

KERNELS = {"_C", "_C_cuda", "errors", "ops"}
LOSSES = KERNELS | {"losses"}
PARTS = LOSSES | {"data", "models", "rewards", "rollout", "speech"}

# What a part may import besides itself; a single file may have its own rule. A part that is missing
# here has no place in the design yet.
MAY_IMPORT = {
    "__init__": LOSSES | {"models"},
    "errors": set(),
    "ops": KERNELS,
    "losses": KERNELS,
    "data": PARTS,
    "data_command": PARTS | {"codec_arguments", "config", "outputs", "progress_bars"},
    "models": PARTS,
    "models/prompt_audio/cache": PARTS | {"outputs"},
    "rewards": PARTS | {"redaction"},
    "rewards/options": PARTS | {"config"},
    "rewards/judge/options": PARTS | {"config", "redaction"},
    "rollout": PARTS,
    "speech": {"errors", "models", "outputs", "rewards"},
    "config": {"errors"},
    "config/listing": {"errors", "recipes"},
    "config/commented": {"errors", "recipes"},
    "outputs": set(),
    "progress_bars": set(),
    "environment_errors": {"errors"},
    "recipes": PARTS,
    "train": PARTS
    | {"checkout", "config", "gpu_monitor", "gpu_specifications", "machine", "outputs"}
    | {"redaction", "signals"},
    "train_command": PARTS | {"config", "recipes", "train", "report", "outputs"},
    "plan": PARTS | {"config", "train"},
    "plan_command": {"config", "errors", "plan", "train_command"},
    "evaluation": PARTS | {"outputs", "recipes", "report", "train"},
    "codec_arguments": {"config", "errors"},
    "evaluate_command": {
        "codec_arguments",
        "config",
        "errors",
        "evaluation",
        "progress_bars",
        "rewards",
        "speech",
        "train",
        "train_command",
    },
    "export_command": {"errors", "models", "train", "train_command"},
    "judge_command": {"config", "errors", "rewards", "speech"},
    "init_command": {"config", "errors", "models", "outputs", "recipes", "speech"},
    "report": {"config", "errors", "outputs", "redaction"},
    "doctor": KERNELS | {"data", "machine"},
    "checkout": set(),
    "machine": {"errors"},
    "redaction": set(),
    "gpu_monitor": set(),
    "gpu_specifications": set(),
    "signals": set(),
    "standard_streams": set(),
    "integrations": LOSSES,
    # It reads the head, with its adapters, out of a model that another library has made.
    "integrations/fused_head": LOSSES | {"models"},
    "integrations/verl": LOSSES | {"models"},
    "__main__": {"cli"},
    "bench_command": {"errors", "outputs"},
    "cli": PARTS
    | {"config", "recipes", "train", "report", "doctor"}
    | {
        "bench_command",
        "data_command",
        "environment_errors",
        "outputs",
        "evaluate_command",
        "export_command",
        "init_command",
        "judge_command",
        "plan_command",
        "signals",
        "standard_streams",
        "train_command",
    },
}


def part_of(module: str) -> str:
    """`wavalign_fast.ops.options` belongs to `ops`, `wavalign_fast` itself to `__init__`."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imported_modules(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """Returns (line, module) of every import of this package, also inside functions."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, [*parents, base]))
            # In `from wavalign_fast import ops` the part is the imported name.
            deeper = base == "wavalign_fast"
            found += [
                (node.lineno, f"{base}.{alias.name}" if deeper else base) for alias in node.names
            ]
    return [(line, module) for line, module in found if module.split(".")[0] == "wavalign_fast"]


def import_violations(path: str, source: str) -> list[str]:
    """Returns the forbidden imports in the file at `path` (relative to the package)."""
    part = Path(path).parts[0].removesuffix(".py")
    package = ".".join(["wavalign_fast", *Path(path).parent.parts])
    allowed = MAY_IMPORT.get(path.removesuffix(".py"), MAY_IMPORT[part]) | {part}
    return [
        f"{path}:{line}: {part} must not import {module}"
        for line, module in imported_modules(ast.parse(source), package)
        if part_of(module) not in allowed
    ]


def long_functions(path: str, source: str) -> list[str]:
    """Returns functions over the limit, without counting their docstrings."""
    return [
        f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := length(node) - docstring_length(node)) > MAX_FUNCTION_LINES
    ]


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return length(function.body[0]) if ast.get_docstring(function) is not None else 0


def sources(*patterns: str) -> list[Path]:
    found = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    assert found, f"no file matches {patterns}"
    return found


PYTHON = [
    "wavalign_fast/**/*.py", "benchmarks/**/*.py", "tools/**/*.py", "csrc/*.py", "setup.py",
]  # fmt: skip
CPP = [f"csrc/**/*.{ending}" for ending in ("cpp", "h", "cu", "cuh")]


def test_imports_go_one_way():
    violations = []
    for path in sources("wavalign_fast/**/*.py"):
        inside = str(path.relative_to(PACKAGE))
        violations += import_violations(inside, path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)


def test_every_part_has_a_place():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources(PYTHON[0])}
    assert parts <= set(MAY_IMPORT), f"no rule for {sorted(parts - set(MAY_IMPORT))}"


def test_files_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in sources(*PYTHON, *CPP)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    ]
    assert not long, f"more than {MAX_FILE_LINES} lines:\n" + "\n".join(long)


def test_functions_are_short():
    long = []
    for path in sources(*PYTHON):
        long += long_functions(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    assert not long, "\n".join(long)


def test_benchmarks_import_each_other_relatively():
    """They are `benchmarks` in a checkout and `wavalign_fast.benchmarks` where installed."""
    for path in sources("benchmarks/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            for name in names:
                assert name.split(".")[0] != "benchmarks", f"{path.name}:{node.lineno}: {name}"
                assert not name.startswith("wavalign_fast.benchmarks"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/x.py", "from wavalign_fast.losses import gate"),
        ("ops/x.py", "from wavalign_fast import losses"),
        ("ops/x.py", "def f():\n    import wavalign_fast.losses.gate"),
        ("ops/deep/x.py", "from ... import losses"),
        ("losses/x.py", "from wavalign_fast.data.records import Example"),
        ("config/x.py", "from wavalign_fast.recipes import load_recipe"),
        ("data/x.py", "from wavalign_fast.train.task_protocol import Task"),
        ("train/x.py", "from wavalign_fast.recipes import spoken_sums"),
        ("train/x.py", "from ..recipes.spoken_sums import task"),
        ("recipes/spoken_sums/x.py", "from wavalign_fast.train.task_protocol import Task"),
        ("report/x.py", "import wavalign_fast.train.atomic_files"),
        ("integrations/x.py", "from wavalign_fast.rollout import sample_completions"),
        ("__init__.py", "from wavalign_fast.train import trainer"),
    ],
)
def test_a_forbidden_import_is_found(path, source):
    assert len(import_violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("losses/x.py", "from wavalign_fast.ops import linear_logprob"),
        ("rollout/x.py", "from wavalign_fast.data.records import Completion"),
        ("config/listing.py", "from wavalign_fast.recipes import load_recipe"),
        ("ops/x.py", "from . import reference\nfrom .options import LossOptions\nimport torch"),
        ("cli.py", "from wavalign_fast import doctor\nfrom wavalign_fast.train import trainer"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert import_violations(path, source) == []


@pytest.mark.parametrize(("lines", "found"), [(MAX_FUNCTION_LINES, 0), (MAX_FUNCTION_LINES + 1, 1)])
def test_a_long_function_is_found(lines, found):
    docstring = '    """One.\n\n    Two.\n    """\n'
    body = "    x = 0\n" * (lines - 1)
    assert len(long_functions("x.py", f"def f():\n{docstring}{body}")) == found
