"""The forward pass: packing, attention, heads, LoRA, loading and checking of given models, tokenizers, FLOPs."""
