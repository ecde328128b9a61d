"""SCALE on the node's side: a real runtime's metadata, and the local chain's state encoded by it."""

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bittensor._transport.codec import RuntimeCodec, StorageEntry, strip_option_opaque_metadata
from bittensor._transport.errors import StorageFunctionNotFound

from node.chain.local_state import LocalState
from node.chain.local_views import MAPS, RUNTIME_CALLS, STORAGE

SPEC_VERSION = 461
TRANSACTION_VERSION = 1
PREFIX_BYTES = 32
"""A storage key begins with the hashes of the pallet's and the item's name, 16 bytes each."""
FIXTURE_SLOT_MS = 250
U8 = "u8"
IDENTITY_HASHER = 6
DEFAULT = 1
PLAIN_MAP = 1

Key = tuple[str, str]
CONSENSUS: Key = ("SubtensorModule", "SubnetEpochConsensus")
CONSENSUS_NAMES = ("Yuma", "Null")


class Runtime:
    """Encodes and decodes what travels between the SDK and the node.

    `has_consensus` says whether the runtime knows SubnetEpochConsensus, which the fixture's does not.
    """

    def __init__(self, fixture: Path, *, block_time_s: float, has_consensus: bool = True) -> None:
        golden = json.loads(fixture.read_text())
        plain = strip_option_opaque_metadata(bytes.fromhex(golden["metadata"]["v15_hex"][2:]))
        assert plain is not None
        unpatched = RuntimeCodec(plain, spec_version=SPEC_VERSION, transaction_version=TRANSACTION_VERSION)
        metadata = _with_slot_duration(plain, round(block_time_s * 1000))
        if has_consensus:
            metadata = _with_consensus(metadata, unpatched)
        self.codec = RuntimeCodec(
            metadata, spec_version=SPEC_VERSION, transaction_version=TRANSACTION_VERSION
        )
        self.metadata_answer = "0x" + (b"\x01" + compact(len(metadata)) + metadata).hex()
        """What Metadata_metadata_at_version answers: an optional byte string."""
        self.events_key = self.codec.storage_key(self.codec.storage_entry("System", "Events"), [])
        fee = self.codec.runtime_api_map["TransactionPaymentApi"]["query_info"]["output"]
        self.no_fee = self.encode(fee, None)
        """What a quote for an extrinsic's fee answers."""
        self.fingerprint = hashlib.sha256(metadata).hexdigest()[:16]

    @cached_property
    def version(self) -> dict[str, Any]:
        """Answer of state_getRuntimeVersion."""
        return {
            "specName": "node-subtensor",
            "specVersion": SPEC_VERSION,
            "transactionVersion": TRANSACTION_VERSION,
        }

    def storage(self, state: LocalState, key: bytes) -> bytes | None:
        """One storage value; None for what holds nothing (the SDK then takes the item's default)."""
        item = self._items.get(key[:PREFIX_BYTES])
        if item is None:
            return None
        entry = self.codec.storage_entry(*item)
        params = self.codec.decode_storage_key_params(entry, key, fixed=0) if entry.param_types else []
        value = _value(state, item, params)
        return None if value is None else self.encode(entry.value_type, value)

    def keys(self, state: LocalState, prefix: bytes) -> list[bytes]:
        """Keys of a storage map below a prefix, sorted as the node's database sorts them."""
        item = self._items.get(prefix[:PREFIX_BYTES])
        if item not in MAPS:
            return []
        entry = self.codec.storage_entry(*item)
        netuid = [state.parameters.netuid] if len(entry.param_types) > 1 else []
        found = (
            self.codec.storage_key(entry, [*netuid, *_as_list(key)]) for key, _ in MAPS[item](state, *netuid)
        )
        return sorted(key for key in found if key.startswith(prefix))

    def call(self, state: LocalState, method: str, data: bytes) -> bytes | None:
        """Result of a runtime API call; None when the runtime has none of that name."""
        api, _, name = method.partition("_")
        view = RUNTIME_CALLS.get((api, name))
        if view is None:
            return None
        definition = self.codec.runtime_api_map[api][name]
        # Every API that the local chain has takes one number of 16 bits, the subnet's.
        (netuid,) = struct.unpack("<H", data)
        return self.encode(definition["output"], view(state, netuid))

    def encode(self, type_string: str, value: Any) -> bytes:
        """SCALE bytes of a value whose missing fields are taken as zero."""
        type_id = int(type_string.removeprefix("scale_info::"))
        return self.codec.encode(type_string, self._completed(type_id, value))

    @cached_property
    def _items(self) -> Mapping[bytes, Key]:
        found: dict[bytes, Key] = {}
        for item in STORAGE:
            try:
                entry: StorageEntry = self.codec.storage_entry(*item)
            except StorageFunctionNotFound:
                continue
            found[self.codec.storage_key(entry, [])[:PREFIX_BYTES]] = item
        for item in MAPS:
            found[self.codec.storage_key(self.codec.storage_entry(*item), [])[:PREFIX_BYTES]] = item
        return found

    @cached_property
    def _types(self) -> dict[int, dict[str, Any]]:
        return {entry["id"]: entry["type"] for entry in self.codec.registry_types()}

    def _completed(self, type_id: int, value: Any) -> Any:
        """The value as the type wants it: the local chain knows a part of every record's fields."""
        definition = self._types[type_id]["def"]
        if "sequence" in definition:
            if isinstance(value, str):
                value = value.encode()
            return [self._completed(definition["sequence"]["type"], item) for item in value or []]
        if "compact" in definition:
            return self._completed(definition["compact"]["type"], value)
        if "composite" in definition:
            return self._completed_record(definition["composite"].get("fields", []), value)
        if "variant" in definition:
            return self._completed_variant(definition["variant"].get("variants", []), value)
        if "tuple" in definition:
            values = value if value is not None else [None] * len(definition["tuple"])
            return tuple(self._completed(i, v) for i, v in zip(definition["tuple"], values, strict=True))
        if "array" in definition and value is None:
            return [self._completed(definition["array"]["type"], None)] * definition["array"]["len"]
        if value is None and "primitive" in definition:
            return {"bool": False, "str": ""}.get(definition["primitive"], 0)
        return value

    def _completed_record(self, fields: Sequence[dict[str, Any]], value: Any) -> Any:
        names = [field.get("name") for field in fields]
        if not fields or names == [None]:
            return value if value is not None or not fields else self._completed(fields[0]["type"], None)
        if value is not None and not isinstance(value, dict):
            return value
        known = value or {}
        return {field["name"]: self._completed(field["type"], known.get(field["name"])) for field in fields}

    def _completed_variant(self, variants: Sequence[dict[str, Any]], value: Any) -> Any:
        names = [variant["name"] for variant in variants]
        if names == ["None", "Some"]:
            return None if value is None else self._completed(variants[1]["fields"][0]["type"], value)
        return names[0] if value is None else value


def _value(state: LocalState, item: Key, params: Sequence[Any]) -> Any:
    if item == CONSENSUS:
        return CONSENSUS_NAMES.index(STORAGE[item](state, *params))
    if item in STORAGE:
        return STORAGE[item](state, *params)
    *fixed, key = params
    return dict(MAPS[item](state, *fixed)).get(key)


def compact(value: int) -> bytes:
    """SCALE's compact form of a length below 2^30."""
    if value < 1 << 6:
        return bytes([value << 2])
    if value < 1 << 14:
        return struct.pack("<H", value << 2 | 1)
    return struct.pack("<I", value << 2 | 2)


def _read_compact(data: bytes, offset: int) -> tuple[int, int]:
    """Value and width of the compact number at an offset."""
    width = {0: 1, 1: 2, 2: 4}[data[offset] & 3]
    return int.from_bytes(data[offset : offset + width], "little") >> 2, width


def _text(text: str) -> bytes:
    return compact(len(text)) + text.encode()


def _with_slot_duration(metadata: bytes, slot_ms: int) -> bytes:
    """The metadata with another value of the constant Aura.SlotDuration."""
    old, new = struct.pack("<Q", FIXTURE_SLOT_MS), struct.pack("<Q", slot_ms)
    # A constant: its name, the number of its type (two bytes or less), and its value as a byte string.
    name = re.escape(_text("SlotDuration"))
    patched, count = re.subn(
        b"(" + name + b".{1,2}" + re.escape(compact(len(old))) + b")" + re.escape(old),
        lambda found: found[1] + new,
        metadata,
        flags=re.DOTALL,
    )
    assert count == 1, "the constant SlotDuration is not where it was"
    return patched


def _with_consensus(metadata: bytes, codec: RuntimeCodec) -> bytes:
    """The metadata with SubtensorModule.SubnetEpochConsensus, a number (0: Yuma) by subnet."""
    head = _text("SubtensorModule") + b"\x01" + _text("SubtensorModule")
    at = metadata.index(head) + len(head)
    count, width = _read_compact(metadata, at)
    u16 = int(codec.storage_entry("SubtensorModule", "Tempo").param_types[0].removeprefix("scale_info::"))
    u8 = codec.type_id_of(U8)
    assert u8 is not None
    entry = (
        _text("SubnetEpochConsensus")
        + bytes([DEFAULT, PLAIN_MAP])
        + compact(1)
        + bytes([IDENTITY_HASHER])
        + compact(u16)
        + compact(u8)
        + compact(1)
        + b"\x00"  # the default value
        + compact(0)  # no documentation
    )
    return metadata[:at] + compact(count + 1) + entry + metadata[at + width :]


def _as_list(key: Any) -> list[Any]:
    return list(key) if isinstance(key, tuple) else [key]
