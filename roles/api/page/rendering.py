"""The templates and static files of the page; every value from outside is escaped by the engine."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protocol.leagues import league_of
from protocol.messages import SubmissionDetail
from protocol.rules import REWARD_SHARES, TIE_MARGIN
from roles.api.page import plot, texts

PACKAGE: Final = "roles.api.page"
CONTENT_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SECTIONS: Final = ("notice", "round", "leaderboard", "plot", "submissions", "pending")
"""The parts of the front page that change by themselves; each has a template `_<name>.html`."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file that browsers may keep: its address changes with its content."""

    name: str
    content: bytes
    content_type: str
    version: str


def read_static_files() -> Mapping[str, StaticFile]:
    """The package's static files by name."""
    found = {}
    for entry in files(PACKAGE).joinpath("static").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix in CONTENT_TYPES:
            content = entry.read_bytes()
            version = hashlib.sha256(content).hexdigest()[:12]
            found[entry.name] = StaticFile(entry.name, content, CONTENT_TYPES[suffix], version)
    return found


class Pages:
    """Renders templates to text."""

    def __init__(self) -> None:
        self.static = read_static_files()
        self._env = Environment(
            loader=PackageLoader(PACKAGE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._env.filters |= {
            "short_key": texts.short_key,
            "figure": texts.figure,
            "percent": texts.percent,
            "duration": texts.duration,
            "moment": texts.moment,
            "spoken": texts.spoken,
            "evidence": evidence_text,
        }
        self._env.globals |= {
            "static": self._static_address,
            "decimals_for": texts.decimals_for,
            "plural": texts.plural,
            "plot_of": plot.draw,
            "plot_size": (plot.WIDTH, plot.HEIGHT, plot.LEFT, plot.RIGHT, plot.TOP, plot.BOTTOM),
            "league_of": league_of,
            "tie_margin": TIE_MARGIN,
            "shares": REWARD_SHARES,
            "code_address": code_address,
        }

    def render(self, template: str, **values: Any) -> Markup:
        """A template as text that is safe to put into another one."""
        return Markup(self._env.get_template(template).render(**values))  # noqa: S704 - autoescaped

    def _static_address(self, name: str) -> str:
        return f"/static/{name}?v={self.static[name].version}"


def evidence_text(value: Any) -> str:
    """Evidence as readable JSON in ASCII: no sign of a hostile log can turn the line around."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True)


def code_address(detail: SubmissionDetail) -> str | None:
    """Where a browser finds the submitted commit, None when the code is hidden or not on GitHub."""
    if detail.fork_url is None or not detail.fork_url.startswith("https://github.com/"):
        return None
    return f"{detail.fork_url}/tree/{detail.commit_hash}"
