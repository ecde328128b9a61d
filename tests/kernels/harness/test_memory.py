"""Sealed files: inputs that cannot change, outputs that cannot shrink, poison that shows."""

import mmap
import os

import numpy as np
import pytest
import torch

from kernels.harness.memory import POISON, OutputFile, input_file, map_inputs, map_output


def test_inputs_are_sealed_and_private() -> None:
    data = np.arange(10, dtype=np.float32)
    descriptor = input_file(data)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 4)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 40, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        mine = map_inputs(descriptor, 10)
        mine[0] = 99.0
        assert torch.equal(map_inputs(descriptor, 10), torch.arange(10, dtype=torch.float32))
    finally:
        os.close(descriptor)


def test_output_is_shared_poisoned_and_keeps_its_size() -> None:
    output = OutputFile(8)
    assert (output.bits == POISON).all()
    assert np.isnan(output.bits.view(np.float32)).all()
    with pytest.raises(PermissionError):
        os.ftruncate(output.descriptor, 0)
    map_output(output.descriptor, 8)[3] = 1.5
    assert output.bits.view(np.float32)[3] == 1.5
    assert int((output.bits == POISON).sum()) == 7
    output.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(output.descriptor)
