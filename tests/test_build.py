"""The contents of the sdist and the wheel, and a build without a compiler."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', PYPROJECT, re.M).group(1)

# Build products and caches, which neither a program nor a compiler reads.
GENERATED = {".so", ".pyc", ".o"}
BACKEND = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def run_backend(source: Path, hook: str, target: Path, **env: str) -> subprocess.CompletedProcess:
    """Calls the build backend with ``env`` as the only WAVALIGN_ variables."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAVALIGN_")}
    return subprocess.run(
        [sys.executable, "-c", BACKEND, hook, str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        env=inherited | env,
    )


def files_under(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in GENERATED
    }


def installed_benchmarks() -> set[str]:
    """All of benchmarks/ except the plots and pages, which are made from the results."""
    return {name for name in files_under("benchmarks") if "/plots/" not in name} - {
        "benchmarks/results.html",
        "benchmarks/NOTES.md",
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, so that a build leaves no files in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "wavalign_fast", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    done = run_backend(checkout, "build_sdist", target)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel_without_compiler(sdist, tmp_path_factory) -> tuple[Path, str]:
    """A wheel built from the unpacked sdist without a C++ compiler, and the output of the build."""
    source = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # Python 3.11.2, in Debian 12, has no filters and ignores the attribute.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(source)
    target = tmp_path_factory.mktemp("wheel")
    unpacked = next(source.iterdir())
    done = run_backend(unpacked, "build_wheel", target, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl")), done.stdout + done.stderr


def test_the_sdist_contains_everything_a_build_reads(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files_under("csrc") | files_under("wavalign_fast") | installed_benchmarks()
    wanted |= {"pyproject.toml", "setup.py", "LICENSE", "README.md"}
    assert any(name.startswith("csrc/") for name in wanted)
    assert wanted <= names, f"missing: {sorted(wanted - names)}"


def test_one_file_includes_all_of_the_library():
    """A source that csrc/library.cpp leaves out would not be compiled."""
    library = (ROOT / "csrc" / "library.cpp").read_text(encoding="utf-8")
    sources = {f"cpu/{path.name}" for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert set(re.findall('#include "(.+)"', library)) == sources | {"bindings.cpp"}


def test_the_wheel_contains_everything_a_run_reads(wheel_without_compiler):
    names = set(zipfile.ZipFile(wheel_without_compiler[0]).namelist())
    wanted = files_under("wavalign_fast")
    assert "wavalign_fast/py.typed" in wanted
    wanted |= {f"wavalign_fast/{name}" for name in installed_benchmarks()}
    assert any("/assets/" in name for name in wanted)
    assert wanted <= names, f"missing: {sorted(wanted - names)}"
    strangers = {
        name for name in names if not name.startswith(("wavalign_fast/", "wavalign_fast-"))
    }
    assert not strangers


def test_every_package_is_listed():
    """A folder missing from the list would be missing from the wheel."""
    listed = re.search(r"^packages = \[(.+?)\]", PYPROJECT, re.M | re.S).group(1)
    folders = [*ROOT.glob("wavalign_fast/**/__init__.py"), *ROOT.glob("benchmarks/**/__init__.py")]
    names = {".".join(path.parent.relative_to(ROOT).parts) for path in folders}
    installed = {name.replace("benchmarks", "wavalign_fast.benchmarks", 1) for name in names}
    assert set(re.findall(r'"(.+?)"', listed)) == installed


def test_a_build_without_a_compiler_reports_it_once(wheel_without_compiler):
    wheel, output = wheel_without_compiler
    assert output.count("WITHOUT its C++ kernels") == 1
    assert "no-such-compiler" in output
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_an_editable_build_without_a_compiler_succeeds(checkout, tmp_path):
    """An editable build copies its products into the checkout; here there are none."""
    shutil.copytree(checkout, source := tmp_path / "source")
    stale = source / "wavalign_fast" / "_C.abi3.so"
    stale.write_text("of an earlier build")
    done = run_backend(source, "build_editable", tmp_path, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.whl"))) == 1
    assert (done.stdout + done.stderr).count("WITHOUT its C++ kernels") == 1
    assert not stale.exists()


@pytest.mark.parametrize(
    ("value", "debug"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)]
)
def test_a_debug_build_is_made_only_on_request(monkeypatch, value, debug):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import build_cpu

    monkeypatch.delenv("WAVALIGN_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("WAVALIGN_DEBUG", value)
    flags = build_cpu.extension().extra_compile_args
    assert ("-O0" in flags, "-UNDEBUG" in flags, "-g" in flags) == (debug,) * 3
    assert ("-O3" in flags, "-DNDEBUG" in flags) == (not debug,) * 2


def test_wheel_metadata(wheel_without_compiler):
    wheel = zipfile.ZipFile(wheel_without_compiler[0])
    text = wheel.read(f"wavalign_fast-{VERSION}.dist-info/METADATA").decode()
    assert f"Version: {VERSION}" in text
    assert "Requires-Dist: torch>=2.10" in text
    entry_points = wheel.read(f"wavalign_fast-{VERSION}.dist-info/entry_points.txt").decode()
    assert "wavalign-fast = wavalign_fast.cli:main" in entry_points


def test_the_version_is_written_once():
    assert metadata.version("wavalign-fast") == VERSION
    sources = [*(ROOT / "wavalign_fast").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    copies = [
        path.name
        for path in [*sources, ROOT / "setup.py"]
        if f'"{VERSION}"' in path.read_text(encoding="utf-8")
    ]
    assert not copies


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search("^version: (.+)$", citation, re.M).group(1) == VERSION


def test_every_extra_has_a_check():
    """tools/check_extras.py installs each extra alone and runs its file."""
    section = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = {name.replace("-", "_") for name in re.findall(r"^([a-z-]+) = \[", section, re.M)}
    checks = {path.stem for path in (ROOT / "tools" / "extras").glob("*.py")}
    assert checks == extras | {"no_extra"}


def test_setup_py_is_short():
    assert len((ROOT / "setup.py").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    ("tool", "mirror"),
    [
        ("ruff", "ruff-pre-commit"),
        ("mypy", "mirrors-mypy"),
        ("clang-format", "mirrors-clang-format"),
    ],
)
def test_pre_commit_runs_the_pinned_linters(tool, mirror):
    pinned = re.search(rf'"{tool}==(.+?)"', PYPROJECT).group(1)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.search(rf"{mirror}\s+rev: v(\S+)", hooks).group(1) == pinned


def releases(name: str) -> dict[str, str]:
    """The releases that tools/test_with.sh installs, such as ``==2.10.0``, by package."""
    text = (ROOT / "tools" / "releases" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)([^;\n]*)", text, re.M))


def requirements() -> dict[str, str]:
    """Lower bounds in pyproject.toml: of the build, the package and its extra [train]."""
    build = re.search(r"^requires = (.+)$", PYPROJECT, re.M).group(1)
    package = re.search(r"^dependencies = (.+)$", PYPROJECT, re.M).group(1)
    train = re.search(r"^train = \[(.+?)^\]", PYPROJECT, re.M | re.S).group(1)
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)', build + package + train))


def test_the_floors_are_what_is_tested():
    floors, wanted = releases("floors"), requirements()
    assert set(floors) == set(wanted) | {"triton"} and len(wanted) == 10
    assert floors["triton"] == "==3.6.0"  # the one that torch 2.10 pins
    wrong = {
        name: (bound, floors[name])
        for name, bound in wanted.items()
        if not re.fullmatch(rf"=={re.escape(bound)}(\.\d+)*", floors[name])
    }
    assert not wrong


def test_the_newest_releases_are_named():
    newest = releases("newest")
    assert set(newest) == set(releases("floors"))
    assert all(newest[name].startswith("==") for name in ("torch", "triton", "transformers"))


def test_every_python_is_named_everywhere():
    found = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', PYPROJECT, re.M)
    first, end = map(int, found.groups())
    named = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    assert list(map(int, named)) == list(range(first, end))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"(3, {first}) <= sys.version_info < (3, {end})" in makefile
    assert f"wants Python 3.{first} to 3.{end - 1}, found" in makefile
