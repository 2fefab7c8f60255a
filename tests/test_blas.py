"""Which BLAS is put under MLX. Each case needs a fresh process: a library loaded once stays."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from forge import blas
from forge.tracking import provenance

ROOT = Path(__file__).parents[1]
CPU_OF_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux") or blas._has_cuda(), reason="only Linux CPUs need another BLAS")

# Imports forge with nothing prepared, as on a Linux CPU, whatever this machine is. Libraries are looked for where `candidates` says.
FRESH = """
import os, sys
os.environ["FORGE_BLAS"] = "off"
from forge import blas
del os.environ["FORGE_BLAS"]
blas._state, blas._has_cuda, sys.platform = "not prepared", lambda: False, "linux"
"""


def python(code: str, **environment: str) -> tuple[list[str], list[str]]:
    """The lines of stdout and of stderr of a new interpreter."""
    inherited = {key: value for key, value in os.environ.items() if key != "FORGE_BLAS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


@CPU_OF_LINUX
def test_the_named_library_is_loaded_and_comes_before_mlx_s_own() -> None:
    """An MLX that finds the symbol already defined uses that one, so its address has to be the library's, before and after."""
    (state, *found), warnings = python("""
import ctypes
import forge
from forge import blas
def address(library): return ctypes.cast(library.cblas_sgemm, ctypes.c_void_p).value
print(blas.describe())
if blas.describe().startswith("lib"):
    first = address(ctypes.CDLL(None))
    import mlx.core
    print(first == address(ctypes.CDLL(None)) == address(ctypes.CDLL(blas.describe())))
""")
    if state == "mlx reference":
        pytest.skip("no fast BLAS on this machine")
    assert found == ["True"]
    assert warnings == []


@CPU_OF_LINUX
def test_a_library_named_in_the_environment_comes_first() -> None:
    """libblas of the mlx-cpu wheel stands in for a user's own library: it has CBLAS under its plain names."""
    library = next(Path(sys.prefix).glob("lib/python*/site-packages/mlx_cpu.libs/libblas*.so*"), None)
    if library is None:
        pytest.skip("needs the mlx-cpu wheel")
    assert python("from forge import blas; print(blas.describe())", FORGE_BLAS=str(library)) == ([library.name], [])


@CPU_OF_LINUX
def test_it_can_be_turned_off_in_silence() -> None:
    assert python("from forge import blas; print(blas.describe())", FORGE_BLAS="off") == (["mlx reference (FORGE_BLAS=off)"], [])


@CPU_OF_LINUX
def test_mlx_imported_first_gets_one_line() -> None:
    printed, warnings = python("import mlx.core\nfrom forge import blas\nprint(blas.describe())")
    assert printed == ["mlx reference"]
    assert warnings == ["forge: mlx was imported before forge, so its slow reference BLAS stays: import forge first"]


def test_no_library_found_gets_one_line_that_says_what_to_install() -> None:
    printed, (warning,) = python(FRESH + "blas._candidates = lambda: ['libnone.so.0']\nblas.prepare()\nprint(blas.describe())")
    assert printed == ["mlx reference"]
    assert warning.startswith("forge: no fast BLAS found") and "libopenblas0" in warning and "FORGE_BLAS" in warning


def test_a_library_without_cblas_is_passed_over() -> None:
    """numpy's own OpenBLAS is such a one; libc stands in for it."""
    printed, warnings = python(FRESH + "blas._candidates = lambda: ['libc.so.6']\nblas.prepare()\nprint(blas.describe())")
    assert printed == ["mlx reference"]
    assert len(warnings) == 1


def test_candidates_are_the_named_one_then_the_usual_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """conda and the mkl wheel put theirs below the environment."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmkl_rt.so.2").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("FORGE_BLAS", "/opt/libfast.so")
    first, *usual, last = blas._candidates()
    assert first == "/opt/libfast.so"
    assert usual[0] == "libopenblas.so.0"
    assert last == str(tmp_path / "lib" / "libmkl_rt.so.2")


@pytest.mark.parametrize(
    ("machine", "state"),
    [("sys.platform = 'darwin'", "system"), ("blas._has_cuda = lambda: True", "cuda")],
)
def test_macs_and_cuda_are_left_alone(machine: str, state: str) -> None:
    code = FRESH + f"{machine}\nblas._load_first = lambda: 'libwrong.so'\nblas.prepare()\nprint(blas.describe())"
    assert python(code) == ([state], [])


def test_it_prepares_once() -> None:
    """A second call would load, and warn, again."""
    code = FRESH + "blas._keep_freed_memory = lambda: None\nblas._candidates = lambda: []\nblas.prepare()\nblas.prepare()"
    assert len(python(code)[1]) == 1


@CPU_OF_LINUX
def test_a_named_library_that_does_not_load_gets_one_line() -> None:
    _, warnings = python("import forge", FORGE_BLAS="libnone.so.0")
    assert len(warnings) == 1 and "libnone.so.0" in warnings[0]


@pytest.mark.parametrize("name", ["mlx_cuda_12", "mlx_cuda_13", "mlx_cpu"])
def test_the_cuda_backend_is_known_by_its_distribution(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheel holds mlx/lib/libmlx.so, as the CPU's does, and no module of its own."""
    if blas._has_cuda():
        pytest.skip("this environment has it")
    package = tmp_path / f"{name}-0.0.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert blas._has_cuda() is ("cuda" in name)


@CPU_OF_LINUX
def test_mlx_is_told_to_call_no_compiler_and_to_walk_graphs_in_breadth() -> None:
    """A user's own setting stays."""
    code = "import os, forge\nprint(os.environ.get('MLX_DISABLE_COMPILE'), os.environ.get('MLX_BFS_MAX_WIDTH'))"
    unset = {"FORGE_BLAS": "", "MLX_BFS_MAX_WIDTH": "99"}
    assert python("import os\nos.environ.pop('MLX_DISABLE_COMPILE', None)\n" + code, **unset)[0] == ["1 99"]


@CPU_OF_LINUX
def test_threads_of_the_library_in_use_can_be_set() -> None:
    """OpenBLAS and MKL say how many they take; the reference BLAS has no say."""
    printed, _ = python("""
import ctypes, forge
from forge import blas
for number in (1, 2):
    blas.use_threads(number)
    told = [getattr(blas._library, name)() for name in ("openblas_get_num_threads", "MKL_Get_Max_Threads") if hasattr(blas._library, name)]
    print(number, *told)
""")
    assert printed in (["1 1", "2 2"], ["1", "2"])


@CPU_OF_LINUX
def test_the_kernels_are_those_that_openblas_took() -> None:
    """The library itself says which; without the variable it asks the processor."""
    say = "import forge\nfrom forge import blas\nprint(blas.kernels())"
    if "DYNAMIC_ARCH" not in python("import forge\nfrom forge import blas\nprint(blas._told('openblas_get_config'))")[0][0]:
        pytest.skip("needs an OpenBLAS that has kernels to choose from")
    if platform.machine() != "x86_64":
        pytest.skip("these are x86's")
    for core in ("Prescott", "Nehalem"):
        ((found,), _) = python(say, OPENBLAS_CORETYPE=core)
        assert re.fullmatch(rf"OpenBLAS [\d.]+, {core} kernels", found), found
    assert python(say, FORGE_BLAS="off")[0] == ["None"]


@pytest.mark.parametrize("suffix", ["", "64_"])
def test_kernels_are_asked_for_by_the_names_of_the_build(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"config": b"OpenBLAS 0.3.30 DYNAMIC_ARCH NO_AFFINITY Zen MAX_THREADS=64", "corename": b"Zen"}
    library = {f"openblas_get_{name}{suffix}": MagicMock(return_value=text) for name, text in told.items()}
    monkeypatch.setattr(blas, "_library", SimpleNamespace(**library))
    assert blas.kernels() == "OpenBLAS 0.3.30, Zen kernels"


def test_only_an_openblas_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (None, SimpleNamespace(MKL_Set_Num_Threads=print)):
        monkeypatch.setattr(blas, "_library", library)
        assert blas.kernels() is None and "forge.blas_kernels" not in provenance.tags()


def test_without_a_library_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_library", None)
    blas.use_threads(3)
    assert blas.cores() >= 1
