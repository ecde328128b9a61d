"""The exported files: rules kept, results right on the pinned base, parameters set."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.export import VARIANTS, check_exported, export_files
from kernels.fork_base import write_fla_base
from kernels.launch import Launch
from kernels.presets import PRESETS, preset_for
from protocol.errors import ExportFailed, UsageError
from protocol.forks import TARGET_DIR, TARGET_FILES
from protocol.import_rules import check_imports


def write(tree: Path, files: dict[str, str]) -> None:
    (tree / TARGET_DIR).mkdir(parents=True)
    for name, text in files.items():
        (tree / TARGET_DIR / name).write_text(text)


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_keeps_the_rules_and_mentions_nothing_of_ours(variant: str) -> None:
    files = export_files(variant)
    assert set(TARGET_FILES) <= set(files)
    assert check_imports(files).status is None
    for text in files.values():
        assert "kernels." not in text
        compile(text, "exported", "exec")


@pytest.mark.parametrize("variant", ["chunk", "recurrent"])
def test_exported_operators_agree_with_the_reference(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "not for the proof")
    files = export_files(variant)
    files["chunk.py"] += '\nimport os\n\nassert "GITHUB_TOKEN" not in os.environ\n'
    write(tmp_path, files)
    assert 0.0 < check_exported(tmp_path) < 2e-6


def test_the_files_live_on_the_utilities_of_a_fork() -> None:
    files = export_files("chunk")
    assert "from fla.utils import input_guard\n" in files["fused_recurrent.py"]
    assert "from fla.ops.utils.index import prepare_chunk_indices\n" in files["chunk.py"]
    assert "def forward_substitution_kernel(" in files["forward_substitution.py"]
    assert "def fused_quasar_gate(" in files["gate.py"]
    for text in files.values():
        for package in re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE):
            assert package in {
                "fla",
                "torch",
                "triton",
                "itertools",
                "functools",
                "math",
                "dataclasses",
                "typing",
            }


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(UsageError, match="'fastest' is not shipped: use one of chunk, "):
        export_files("fastest")


def test_a_fork_without_kernels_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="holds no fla/ops/quasar"):
        check_exported(tmp_path)


def test_a_broken_export_is_noticed(tmp_path: Path) -> None:
    files = export_files("chunk")
    files["chunk.py"] = files["chunk.py"].replace("scores, 0.0)", "scores, 1.0)")
    assert files["chunk.py"] != export_files("chunk")["chunk.py"]
    write(tmp_path, files)
    with pytest.raises(ExportFailed, match="miss the reference"):
        check_exported(tmp_path)


def test_presets_set_the_launch_parameters() -> None:
    for preset in PRESETS:
        text = export_files("chunk", preset)["chunk.py"]
        assert f"\nCHUNK_SIZE = {preset.launch.chunk_size}\n" in text
        assert f"\nBLOCK_V = {preset.launch.block_v}\n" in text
        assert f"\nNUM_WARPS = {preset.launch.num_warps}\n" in text
        assert f"\nNUM_STAGES = {preset.launch.num_stages}\n" in text
    assert "\nCHUNK_SIZE = 64\n" in export_files("chunk64")["chunk.py"]
    tuned = Launch(chunk_size=32, block_v=16, num_warps=8, num_stages=5, programs=6)
    assert "\nPROGRAMS = 6\n" in export_files("chunk", PRESETS[0], launch=tuned)["chunk.py"]
    assert preset_for("NVIDIA A100-PCIE-80GB").gpu == "A100"
    assert preset_for("Unheard-of 9000").gpu == "any"


def test_base_forbids_gla_and_kda_and_loads_the_rest(tmp_path: Path) -> None:
    write_fla_base(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import fla.utils\n"
        "from fla.ops.utils.index import prepare_chunk_indices\n"
        "assert fla.utils.__file__.startswith(sys.path[0]), fla.utils.__file__\n"
        "from fla.ops.gla import chunk_gla\n"
        "from fla.ops.kda import chunk_kda\n"
        "for name, forbidden in (('gla.chunk_gla', chunk_gla), ('kda.chunk_kda', chunk_kda)):\n"
        "    try:\n"
        "        forbidden(1, option=2)\n"
        "    except ImportError as error:\n"
        "        assert f'fla.ops.{name} is forbidden' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('it ran')\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_importing_export_loads_no_torch() -> None:
    program = (
        "import sys, kernels.export, kernels.presets; "
        "print([m for m in ('torch', 'triton') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"


def test_transformers_does_not_take_us_for_the_hub_package() -> None:
    program = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == "False"
