"""A real PostgreSQL server for tests: Debian's package, started here, thrown away afterwards."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.ports import free_port
from tests.processes import children, is_gone
from tests.requirements import missing
from tests.waiting import until

USER = "quasar"
PASSWORD = "sesame"  # of a server that listens on this machine only, for the time of a test


class PostgresServer:
    """One server with its own data directory; tests start, stop and kill it."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._data = folder / "data"
        self._folder = folder
        self._programs = programs
        self.port = free_port()
        # The server refuses to run as root, as tests in a container do.
        self._owner = "postgres" if os.geteuid() == 0 else None

    def create(self) -> None:
        """Make the data directory."""
        if self._owner is not None:
            shutil.chown(self._folder, self._owner)
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        self._run(
            "initdb", "--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--no-sync", str(self._data),
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run(
            "pg_ctl", "-D", str(self._data), "-l", str(self._folder / "log"), "-w", "-o", options, "start"
        )

    def stop(self) -> None:
        """Stop it as `systemctl restart` would: connections are cut, what is committed is kept."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """SIGKILL the server and its children, as the kernel does when memory runs out."""
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        killed = (pid, *children(pid))
        os.kill(pid, signal.SIGKILL)
        # The children notice by themselves, and until the last has ended no new server starts.
        until(lambda: all(map(is_gone, killed)), lambda: f"of {killed} some live on")
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop", check=False)

    def url(self, database: str) -> str:
        """The address of one database."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"test_{secrets.token_hex(6)}"
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement and return what it printed."""
        result = subprocess.run(
            [shutil.which("psql") or "psql", "--no-psqlrc", "-qAt", "-c", statement, self.url(database)],
            check=True,
            capture_output=True,
            text=True,
            timeout=280,
        )
        return result.stdout.strip()

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        result = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            user=self._owner,
            check=False,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=280,
        )
        log = self._folder / "log"
        said = (result.stdout or b"").decode() + (log.read_text()[-2000:] if log.exists() else "")
        assert not check or result.returncode == 0, said


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; skips the test where PostgreSQL is not installed, fails there in CI."""
    programs = _programs()
    if programs is None:
        missing("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Not in pytest's folder, which only the user who runs the tests may enter.
    with tempfile.TemporaryDirectory(prefix="quasar-postgres-") as folder:
        server = PostgresServer(Path(folder), programs)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    return None if on_path is None else Path(on_path).parent
