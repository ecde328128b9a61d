"""QuasarAttention: reference, Triton kernels, layer, presets and export to a fork."""
