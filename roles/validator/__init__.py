"""The validator: judges kernels, checks logits and sets weights."""
