"""The nodes of one machine: each says where it is, and no two take the same GPU or the same hotkey.

A node holds locks in the machine's lock folder; the kernel gives them back however it ends. What the lock's
file says about its holder is what the others read.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from node.devices import physical_gpu
from node.locks import FileLock, device_lock_path, lock_folder
from protocol.errors import DeviceBusy

NODE_SUFFIX: Final = ".node"
MAX_NOTE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOnHost:
    """A node that runs on this machine."""

    role: str
    hotkey: str
    device: str
    """As it calls it."""
    physical_gpu: str | None
    """The machine's number or UUID for it; None on a CPU."""
    data_dir: str
    pid: int


@contextmanager
def registered_node(
    role: str,
    hotkey: str,
    device: str,
    data_dir: Path,
    *,
    shares_gpu: bool = False,
    env: Mapping[str, str] = os.environ,
) -> Iterator[NodeOnHost]:
    """Hold the places of a node: its hotkey, and on a GPU the GPU: one of each role, or all that share it.

    Raises DeviceBusy, naming who is there and what to do; ConfigError when the lock folder is unusable.
    """
    node = NodeOnHost(
        role=role,
        hotkey=hotkey,
        device=device,
        physical_gpu=physical_gpu(device, env),
        data_dir=str(data_dir.absolute()),
        pid=os.getpid(),
    )
    note = json.dumps(asdict(node))
    folder = lock_folder(env)
    with ExitStack() as held:
        _take(held, folder / f"{role}-{_plain(hotkey)}{NODE_SUFFIX}", f"hotkey {hotkey}", note, _HOTKEY_FIX)
        if node.physical_gpu is not None:
            place = device_lock_path(device, env).with_suffix(f".{role}")
            _take(held, place, f"device {device}", note, _DEVICE_FIX, is_shared=shares_gpu)
        yield node


_HOTKEY_FIX: Final = "a hotkey has one {role} on a machine, set another wallet.hotkey or stop that one"
_DEVICE_FIX: Final = "a GPU has one {role}, set DEVICE or CUDA_VISIBLE_DEVICES to another or stop that one"


def nodes_on_host(*, env: Mapping[str, str] = os.environ) -> list[NodeOnHost]:
    """The nodes that run on this machine now, by device; of other users where their folder is shared."""
    found = []
    for path in sorted(lock_folder(env).glob(f"*{NODE_SUFFIX}")):
        node = _read(path)
        if node is not None and _is_held(path):
            found.append(node)
    return sorted(found, key=lambda node: (node.device, node.role, node.hotkey))


def _take(held: ExitStack, path: Path, what: str, note: str, fix: str, *, is_shared: bool = False) -> None:
    try:
        held.enter_context(FileLock(path, what, note=note, is_shared=is_shared))
    except DeviceBusy as error:
        other = _read(path)
        if other is None:
            raise
        raise DeviceBusy(
            f"{what} is taken by the {other.role} of hotkey {other.hotkey} on {other.device} (process "
            f"{other.pid}, data directory {other.data_dir}): {fix.format(role=other.role)}"
        ) from error


def _read(path: Path) -> NodeOnHost | None:
    """What a lock's file says of its holder; nothing when it says nothing that makes sense."""
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_NOTE_BYTES).decode("utf-8", errors="replace").splitlines()
        return NodeOnHost(**json.loads(lines[1]))
    except (OSError, ValueError, IndexError, TypeError):
        return None


def _is_held(path: Path) -> bool:
    probe = FileLock(path, path.name, is_shared=True)
    try:
        probe.acquire()
    except DeviceBusy:
        return True
    probe.release()
    return False


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text)[:64]
