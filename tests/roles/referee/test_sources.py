"""A submission's files as data: taken from a commit or a folder, checked without being run."""

import shutil
from pathlib import Path

import pytest

from kernels.export import export_files
from node.git import create_bare_repository
from node.git_work_tree import Author, GitWorkTree
from protocol.forks import TARGET_DIR, TARGET_FILES
from protocol.messages import DirectorySource, EvaluationJob, GitSource
from protocol.verdicts import Status
from roles.referee.sources import check_sources, take_sources
from roles.referee.stages import Ended, Record
from tests.roles.referee.jobs import job_in


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """Return a working tree that holds the shipped kernel."""
    folder = tmp_path / "fork" / TARGET_DIR
    folder.mkdir(parents=True)
    for name, text in export_files("chunk").items():
        (folder / name).write_text(text)
    return tmp_path / "fork"


def job_of(source: DirectorySource | GitSource, tmp_path: Path, **options: object) -> EvaluationJob:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return job_in(work, source=source, **options)


def taken(job: EvaluationJob) -> dict[str, str]:
    return take_sources(job.source, job.work_dir)


def ended(job: EvaluationJob) -> Ended:
    with pytest.raises(Ended) as caught:
        taken(job)
    return caught.value


@pytest.fixture
def pushed(fork: Path, tmp_path: Path) -> GitSource:
    """Return a commit that holds the shipped kernel, in remote.git."""
    remote = tmp_path / "remote.git"
    create_bare_repository(remote)
    tree = GitWorkTree(fork)
    tree.ensure()
    commit = tree.commit_all("a kernel", Author(name="a", email="a@example.org"))
    tree.push(remote.as_uri(), commit, "quasar")
    return GitSource(fork_url=remote.as_uri(), commit_hash=commit, allow_file=True)


def test_folder_and_commit_give_the_same_files(fork: Path, pushed: GitSource, tmp_path: Path) -> None:
    from_folder = taken(job_of(DirectorySource(path=str(fork)), tmp_path))
    assert set(TARGET_FILES) <= set(from_folder)
    assert taken(job_of(pushed, tmp_path)) == from_folder


def test_a_deleted_repository_changes_nothing(pushed: GitSource, tmp_path: Path) -> None:
    job = job_of(pushed, tmp_path)
    files = taken(job)
    shutil.rmtree(tmp_path / "remote.git")
    assert [path.name for path in Path(job.work_dir).iterdir()] == ["sources"]
    assert taken(job) == files


def test_what_was_kept_and_is_no_longer_whole_is_fetched_again(pushed: GitSource, tmp_path: Path) -> None:
    job = job_of(pushed, tmp_path)
    files = taken(job)
    [archive] = (Path(job.work_dir) / "sources").iterdir()
    whole = archive.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], bytes([*whole[:100], whole[100] ^ 1, *whole[101:]])):
        archive.write_bytes(damaged)
        assert taken(job) == files
        assert archive.read_bytes() == whole


def test_what_is_larger_than_allowed_is_not_kept(fork: Path, tmp_path: Path) -> None:
    for number in range(9):
        (fork / TARGET_DIR / f"large{number}.py").write_text("#" * 1_000_000)
    tree = GitWorkTree(fork)
    tree.ensure()
    commit = tree.commit_all("large", Author(name="a", email="a@example.org"))
    source = GitSource(fork_url=fork.as_uri(), commit_hash=commit, allow_file=True)
    job = job_of(source, tmp_path)
    assert "larger than 1,048,576 bytes" in str(ended(job))
    assert not (Path(job.work_dir) / "sources").exists()


def test_names_that_no_import_can_name_are_left_out(fork: Path, tmp_path: Path) -> None:
    for name in ("my-kernel.py", "1.py", "with space.py", "a" * 200 + ".py", "línea.py"):
        (fork / TARGET_DIR / name).write_text("x = 1\n")
    files = taken(job_of(DirectorySource(path=str(fork)), tmp_path))
    assert all(name.removesuffix(".py").isidentifier() and name.isascii() for name in files)
    assert not any(len(name) > 103 for name in files)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.org/a/b", "example.org"),
        ("file:///etc", "file"),
        ("https://github.com/../x", "github.com/../x"),
        ("--upload-pack=touch owned", "upload-pack"),
    ],
)
def test_hostile_urls_are_refused_by_name(url: str, words: str, tmp_path: Path) -> None:
    end = ended(job_of(GitSource(fork_url=url, commit_hash="ab" * 20), tmp_path))
    assert end.status is Status.FETCH_FAILED
    assert words in str(end)


def test_a_host_that_is_away_is_not_the_repositorys_answer(pushed: GitSource, tmp_path: Path) -> None:
    """A name that does not resolve, until it does; a repository that is not there has answered."""
    host = "no-such-host.invalid"
    away = pushed.model_copy(update={"fork_url": f"https://{host}/a/b", "allowed_hosts": (host,)})
    end = ended(job_of(away, tmp_path))
    assert (end.status, "Could not resolve host" in str(end)) == (Status.INFRASTRUCTURE, True)
    gone = pushed.model_copy(update={"fork_url": (tmp_path / "gone.git").as_uri()})
    assert ended(job_of(gone, tmp_path)).status is Status.FETCH_FAILED
    assert taken(job_of(pushed, tmp_path))


def test_a_folder_without_a_submission(tmp_path: Path) -> None:
    end = ended(job_of(DirectorySource(path=str(tmp_path)), tmp_path))
    assert end.status is Status.FETCH_FAILED
    assert "fla/ops/quasar" in str(end)


def test_bytes_that_are_no_text(fork: Path, tmp_path: Path) -> None:
    (fork / TARGET_DIR / "gate.py").write_bytes(b"x = '\xff'\n")
    end = ended(job_of(DirectorySource(path=str(fork)), tmp_path))
    assert end.status is Status.BUILD_FAILED
    assert "gate.py: not UTF-8" in str(end)


def test_links_are_not_followed(fork: Path, tmp_path: Path) -> None:
    (fork / TARGET_DIR / "stolen.py").symlink_to("/etc/passwd")
    assert "stolen.py" not in taken(job_of(DirectorySource(path=str(fork)), tmp_path))


def test_fingerprint_is_recorded_and_a_copy_is_a_duplicate(fork: Path, tmp_path: Path) -> None:
    job = job_of(DirectorySource(path=str(fork)), tmp_path)
    record = Record()
    check_sources(taken(job), job, record)
    assert record.fingerprint is not None
    later = job_of(DirectorySource(path=str(fork)), tmp_path, known_fingerprints={record.fingerprint: 12})
    with pytest.raises(Ended, match="submission 12 of another hotkey") as caught:
        check_sources(taken(later), later, Record())
    assert caught.value.status is Status.DUPLICATE
