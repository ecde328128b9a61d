"""Take a submission's files, as data, and check what can be checked without running them."""

import re
from pathlib import Path
from typing import Final

from kernels.fork_base import forbidden_sources
from node.git import MAX_BLOB_BYTES, MAX_BLOBS, GitStore
from protocol.errors import InvalidForkUrl, SourceRejected, SourceUnavailable
from protocol.fingerprint import fingerprint
from protocol.forks import TARGET_DIR, check_commit_hash, check_fork_url
from protocol.import_rules import check_imports
from protocol.kernel_copies import copied_kernels
from protocol.messages import DirectorySource, EvaluationJob, GitSource
from protocol.shown_text import printable
from protocol.verdicts import Status
from roles.referee.kept_files import KeptFiles
from roles.referee.own_folder import own_folder
from roles.referee.stages import Ended, Record

MAX_SOURCES_BYTES: Final = 2**20
"""Of all files; a syntax tree takes up to a thousand times as much memory as its text."""

# What `import` can name; a longer name would not fit into a file system either.
_MODULE_FILE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\.py")


def take_sources(source: DirectorySource | GitSource, work_dir: str) -> dict[str, str]:
    """Return file name -> text of the submission's `fla/ops/quasar/*.py`.

    Raises:
        Ended: fetch_failed, build_failed; infrastructure, nothing was learned about the repository.
    """
    kept = KeptFiles(Path(work_dir) / "sources")
    try:
        blobs = _from_git(source, work_dir, kept) if isinstance(source, GitSource) else _from_folder(source)
    except SourceUnavailable as error:
        raise Ended(Status.INFRASTRUCTURE, str(error)) from error
    except (SourceRejected, InvalidForkUrl) as error:
        raise Ended(Status.FETCH_FAILED, str(error)) from error
    blobs = {name: blob for name, blob in blobs.items() if _MODULE_FILE.fullmatch(name)}
    if sum(map(len, blobs.values())) > MAX_SOURCES_BYTES:
        raise Ended(
            Status.BUILD_FAILED, f"the files of {TARGET_DIR}/ are larger than {MAX_SOURCES_BYTES:,} bytes"
        )
    if isinstance(source, GitSource):
        kept.keep(check_commit_hash(source.commit_hash), blobs)
    sources = {}
    for name, blob in blobs.items():
        try:
            sources[name] = blob.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Ended(Status.BUILD_FAILED, f"{name}: not UTF-8: {error}") from error
    return sources


def _from_git(source: GitSource, work_dir: str, kept: KeptFiles) -> dict[str, bytes]:
    url = check_fork_url(source.fork_url, allowed_hosts=source.allowed_hosts, allow_file=source.allow_file)
    commit_hash = check_commit_hash(source.commit_hash)
    blobs = kept.read(commit_hash)
    if blobs is not None:
        return blobs
    # A store of its own: what others left in one, or the disk lost of it, must not speak of this repository.
    with own_folder(Path(work_dir)) as folder:
        store = GitStore(folder / "commit.git")
        store.fetch_commit(url, commit_hash, allow_file=source.allow_file)
        return store.read_blobs(commit_hash, TARGET_DIR)


def _from_folder(source: DirectorySource) -> dict[str, bytes]:
    folder = Path(source.path) / TARGET_DIR
    if not folder.is_dir():
        raise SourceRejected(
            f"{source.path} has no folder {TARGET_DIR}/: name the root of a fork's working tree"
        )
    files = sorted(path for path in folder.glob("*.py") if path.is_file() and not path.is_symlink())
    if not files or len(files) > MAX_BLOBS:
        raise SourceRejected(f"{folder} holds {len(files)} Python files; 1 to {MAX_BLOBS} are expected")
    for path in files:
        if path.stat().st_size > MAX_BLOB_BYTES:
            raise SourceRejected(f"{path} is larger than {MAX_BLOB_BYTES:,} bytes")
    return {path.name: path.read_bytes() for path in files}


def check_sources(sources: dict[str, str], job: EvaluationJob, record: Record) -> None:
    """Check the rules on imports and copies, then whether another hotkey's submission came first.

    Raises:
        Ended: imports_missing, imports_forbidden, build_failed, duplicate.
    """
    report = check_imports(sources)
    if report.notes:
        record.evidence["import_notes"] = [printable(note) for note in report.notes]
    if report.status is not None:
        raise Ended(report.status, "; ".join(report.problems[:10]))
    copies = copied_kernels(sources, forbidden_sources())
    if copies:
        raise Ended(Status.IMPORTS_FORBIDDEN, "; ".join(copies[:10]))
    record.fingerprint = fingerprint(sources)
    earlier = job.known_fingerprints.get(record.fingerprint)
    if earlier is not None:
        record.evidence["duplicate_of"] = earlier
        raise Ended(Status.DUPLICATE, f"the code is that of submission {earlier} of another hotkey")
