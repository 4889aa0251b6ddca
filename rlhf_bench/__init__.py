"""rlhf-bench: RLHF and DPO compared at identical compute. `version` in pyproject.toml is this one."""

__version__ = "0.1.0"
