"""The PyPI package that has our package's name."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from roles.kernels_package import check_kernels_package


def test_alone_is_fine() -> None:
    check_kernels_package()


def test_foreign_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels-0.18.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.3\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(
        ConfigError, match=r"package 'kernels' 0.18.3 is installed .*: run `pip uninstall kernels`"
    ):
        check_kernels_package()


@pytest.mark.parametrize("name", ["kernels/__init__.py", "kernels.py"])
def test_namesake_in_the_current_folder_is_named(name: str, tmp_path: Path) -> None:
    namesake = tmp_path / name
    namesake.parent.mkdir(exist_ok=True)
    namesake.write_text("raise SystemExit('the wrong module was run')\n")
    result = subprocess.run(
        [sys.executable, "-m", "roles", "--role", "miner"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 78, result.stderr
    assert str(tmp_path / "kernels") in result.stderr
    assert "Traceback" not in result.stderr
