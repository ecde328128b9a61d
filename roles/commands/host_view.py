"""The GPUs of this machine and the nodes that run on it, as one table."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from node.devices import Gpu, list_gpus
from node.host import NodeOnHost, nodes_on_host
from protocol.errors import ConfigError
from roles.status import STATUS_FILE

MAX_STATUS_BYTES: Final = 2**20
SHOWN_CHARS: Final = 60


def host_view() -> dict[str, Any]:
    """Return what is known of the machine: `gpus` by the driver, `nodes` by the places that they hold."""
    try:
        nodes = nodes_on_host()
    except ConfigError:
        # The lock folder cannot be read: then no node could have started either.
        nodes = []
    return {
        "gpus": [dataclasses.asdict(gpu) for gpu in list_gpus()],
        "nodes": [dataclasses.asdict(node) | {"doing": _doing(node)} for node in nodes],
    }


def host_table(view: dict[str, Any]) -> Table:
    """Return the view as a table: a row for every node, and for every GPU that no node uses."""
    table = Table("GPU", "name", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("temp", "util", "memory"):
        table.add_column(heading, justify="right")
    for heading in ("role", "hotkey", "pid", "doing"):
        table.add_column(heading)
    left = list(view["nodes"])
    for document in view["gpus"]:
        gpu = Gpu(**document)
        own = [node for node in left if _is_on(node, gpu)]
        left = [node for node in left if node not in own]
        for node in own or [None]:
            table.add_row(str(gpu.index), gpu.name, *_figures(gpu), *_node(node))
    for node in left:
        table.add_row(escape(str(node["device"])), "", "", "", "", *_node(node))
    return table


def _doing(node: NodeOnHost) -> str:
    """What the node last said of itself; nothing when its folder is not ours to read."""
    try:
        with (Path(node.data_dir) / STATUS_FILE).open("rb") as file:
            status = json.loads(file.read(MAX_STATUS_BYTES))
        optimiser = status.get("optimiser") or {}
        words = [str(optimiser.get("doing", "")), str(optimiser.get("name", ""))]
        height = status.get("height")
    except (OSError, ValueError, AttributeError):
        return ""
    told = " ".join(word for word in words if word)
    text = f"{told}; block {height}" if told else f"block {height}"
    return "".join(char for char in text if char.isprintable())[:SHOWN_CHARS]


def _is_on(node: dict[str, Any], gpu: Gpu) -> bool:
    return node["physical_gpu"] in (str(gpu.index), gpu.uuid)


def _figures(gpu: Gpu) -> tuple[str, str, str]:
    memory = ""
    if gpu.memory_used_mib is not None and gpu.memory_total_mib is not None:
        memory = f"{gpu.memory_used_mib:,.0f} / {gpu.memory_total_mib:,.0f} MiB"
    return _number(gpu.temperature_c, " C"), _number(gpu.utilization_percent, " %"), memory


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f}{unit}"


def _node(node: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if node is None:
        return "", "", "", ""
    return str(node["role"]), escape(str(node["hotkey"])), str(node["pid"]), escape(str(node["doing"]))
