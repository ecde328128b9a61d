"""The metadata of a real subtensor runtime, out of the SDK's source package.

`python -m tests.fakes.subtensor.fixture` fetches it with pip, in the version of the SDK that is installed.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[3] / ".cache" / "subtensor"
MEMBER = "tests/fixtures/golden.json"


def fixture_file() -> Path:
    """Where the fixture of the installed SDK's version lies, or would lie."""
    return CACHE / f"golden-{importlib.metadata.version('bittensor')}.json"


def required_fixture() -> Path:
    """The fixture; without it the test is skipped, and under continuous integration fails."""
    from tests.requirements import missing

    file = fixture_file()
    if not file.is_file():
        missing(f"{file} is missing: run `python -m tests.fakes.subtensor.fixture`")
    return file


def fetch() -> Path:
    """Download the SDK's source package and keep its fixture; nothing to do when it is there."""
    file = fixture_file()
    if file.is_file():
        return file
    version = importlib.metadata.version("bittensor")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        # Only the SDK itself from source: building its metadata needs a wheel of the build backend.
        options = ["--quiet", "--no-deps", "--no-binary", "bittensor", "--dest", folder]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, f"bittensor=={version}"], check=True
        )
        (package,) = Path(folder).glob("bittensor-*.tar.gz")
        with tarfile.open(package) as archive:
            member = archive.extractfile(f"bittensor-{version}/{MEMBER}")
            assert member is not None, f"{package.name} has no {MEMBER}"
            draft = Path(folder) / "golden.json"
            draft.write_bytes(member.read())
        draft.replace(file)
    return file


if __name__ == "__main__":
    print(fetch())
