"""Weight files: safetensors headers, tensors, arrays."""
