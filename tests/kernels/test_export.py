"""The exported files: rules kept, results right on the pinned base, parameters set."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.export import VARIANTS, ExportFailed, check_exported, export_files
from kernels.fork_base import write_fla_base
from kernels.presets import PRESETS, preset_for
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
def test_exported_operators_agree_with_the_reference(variant: str, tmp_path: Path) -> None:
    write(tmp_path, export_files(variant))
    assert check_exported(tmp_path) < 1e-5


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
        assert f"\nCHUNK_SIZE = {preset.chunk_size}\n" in text
        assert f"\nNUM_WARPS = {preset.num_warps}\n" in text
        assert f"\nNUM_STAGES = {preset.num_stages}\n" in text
    assert "\nCHUNK_SIZE = 16\n" in export_files("chunk16")["chunk.py"]
    assert preset_for("NVIDIA A100-PCIE-80GB").gpu == "A100"
    assert preset_for("Unheard-of 9000").gpu == "any"


def test_base_forbids_gla_and_kda_and_loads_the_rest(tmp_path: Path) -> None:
    write_fla_base(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import fla.utils\n"
        "from fla.ops.utils.index import prepare_chunk_indices\n"
        "assert fla.utils.__file__.startswith(sys.path[0]), fla.utils.__file__\n"
        "for name in ('gla', 'kda'):\n"
        "    try:\n"
        "        __import__(f'fla.ops.{name}')\n"
        "    except ImportError as error:\n"
        "        assert 'forbidden' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('it imported')\n"
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
