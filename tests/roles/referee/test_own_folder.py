"""Folders of evaluations: their own while they run, and removed when they are gone."""

import subprocess
import sys
from pathlib import Path

from roles.referee.own_folder import FOLDER_PREFIX, own_folder, remove_left_folders

HOLD = """
import sys
from pathlib import Path
from roles.referee.own_folder import own_folder
with own_folder(Path(sys.argv[1])) as folder:
    (folder / "tree").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_goes_with_its_evaluation(tmp_path: Path) -> None:
    with own_folder(tmp_path) as folder:
        (folder / "tree").mkdir()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_another_referee_in_the_same_data_directory_removes_nothing_that_is_in_use(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        remove_left_folders(tmp_path)
        assert (folder / "tree").is_dir()
        other.kill()
        other.wait()
    # The kernel let go of the lock of the one that was killed.
    remove_left_folders(tmp_path)
    assert not folder.exists()


def test_only_folders_of_evaluations_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    # Of a build that kept what it had fetched.
    (tmp_path / "objects.git" / "objects").mkdir(parents=True)
    (tmp_path / f"{FOLDER_PREFIX}left" / "tree").mkdir(parents=True)
    remove_left_folders(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]
