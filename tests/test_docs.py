"""Every command that the documentation shows exists and parses; links lead somewhere."""

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from roles.cli import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    found.append((page.name, line.strip()))
    return found


@pytest.mark.parametrize(("page", "command"), _commands())
def test_documented_command_parses(page: str, command: str) -> None:
    words = shlex.split(command.split("|")[-1])
    words = words[: words.index("#")] if "#" in words else words
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    program = Path(words[0]).name
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif program == "quasar-node":
        parsed = build_parser().parse_args(words[1:])
        assert parsed.role is not None or parsed.command is not None
    elif program == "btcli":
        known = subprocess.run(
            [Path(sys.executable).with_name("btcli"), *words[1:], "--help"], capture_output=True, timeout=280
        )
        assert known.returncode == 0, known.stderr.decode()
    elif program == "ray":
        # tests/ray_cluster.py starts a real one.
        known = subprocess.run(
            [Path(sys.executable).with_name("ray"), *words[1:], "--help"], capture_output=True
        )
        assert known.returncode == 0, known.stderr.decode()
    elif program == "systemctl":
        assert "@" not in command or "quasar-node@" in command
        assert (ROOT / "deploy/systemd/quasar-node@.service").exists()
    elif program in ("pm2", "npm"):
        # The ecosystem file is run with a real pm2 elsewhere.
        assert all((ROOT / word).exists() for word in words if "/" in word)
    elif program == "python":
        assert words[1] == "-m"
        importlib.import_module(words[2]).parse(words[3:])
    else:
        assert program in {"git", "cd", "cp", "curl", "mkdir", "chmod", "sed"}, (
            f"{page}: no test knows the command {command!r}"
        )


def test_documentation_shows_commands_at_all() -> None:
    pages = {page for page, _ in _commands()}
    assert {
        "README.md",
        "mine.md",
        "write-a-kernel.md",
        "validate.md",
        "api.md",
        "kernels.md",
        "operate.md",
    } <= pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target} does not exist"


def test_help_names_every_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "roles", "--help"], capture_output=True, text=True, timeout=280, check=True
    )
    for name in COMMANDS:
        assert name in result.stdout
