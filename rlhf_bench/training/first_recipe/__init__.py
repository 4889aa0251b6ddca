"""A first recipe for a model, data, a machine and a budget: what `rlhf-bench init` writes.

Lengths and counts come from the data as the model's tokenizer sees them, sizes from the forecast. Every choice that a reader
may want to change is an assumption, with the section of the recipe that it is about."""
