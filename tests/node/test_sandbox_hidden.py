"""Folders of a mount that must not be seen inside, and who dies first when memory runs out."""

import tempfile
from pathlib import Path

import pytest

from node.sandbox import start_sandboxed
from node.sandbox_spec import Mount, SandboxSpec

pytestmark = pytest.mark.usefixtures("bubblewrap")


def run_inside(script: str, mount: Mount, hidden: list[Path]) -> str:
    with tempfile.TemporaryFile() as output:
        spec = SandboxSpec(argv=["/bin/sh", "-c", script], mounts=[mount], hidden=hidden)
        process = start_sandboxed(spec, pass_fds=(), output=output)
        try:
            assert process.wait(20.0) is not None
        finally:
            process.kill()
        output.seek(0)
        return output.read().decode()


def test_a_hidden_folder_is_empty_and_cannot_be_filled(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "kernel.py").write_text("x = 1\n")
    (tmp_path / "open.py").write_text("y = 2\n")
    tmp_path.chmod(0o755)
    output = run_inside(
        "ls -A /data /data/secret; umount /data/secret; ls -A /data/secret;"
        "touch /data/secret/x || echo refused",
        Mount(host=tmp_path, inside=Path("/data")),
        [Path("/data/secret")],
    )
    assert "open.py" in output
    assert "secret" in output
    assert "kernel.py" not in output
    assert "refused" in output


def test_a_hidden_folder_of_the_system_is_empty(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mount = Mount(host=tmp_path, inside=Path("/data"))
    count = "ls -A /usr/share | wc -l"
    assert int(run_inside(count, mount, [])) > 0
    assert int(run_inside(count, mount, [Path("/usr/share")])) == 0


def test_the_kernel_ends_the_sandbox_before_the_node(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    output = run_inside(
        "sh -c 'cat /proc/self/oom_score_adj'", Mount(host=tmp_path, inside=Path("/data")), []
    )
    assert output.split() == ["1000"]
