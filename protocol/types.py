"""A distinct type for every quantity that would otherwise be a bare string or number."""

from typing import NewType

Hotkey = NewType("Hotkey", str)
"""SS58 address of a hotkey; the identity of miners and validators."""

Coldkey = NewType("Coldkey", str)
"""SS58 address of the coldkey that owns a hotkey."""

Uid = NewType("Uid", int)
"""Slot of a neuron in the metagraph; recycled, so looked up only at the moment of use."""

BlockHeight = NewType("BlockHeight", int)
"""A position on chain."""

BlockCount = NewType("BlockCount", int)
"""A distance between two heights."""

SubmissionId = NewType("SubmissionId", int)
"""The API's number of a submission."""

LeaseId = NewType("LeaseId", str)
"""Secret handle of one validator's right to judge one submission."""

CommitHash = NewType("CommitHash", str)
"""A full git commit hash: 40 lower-case hex digits."""
