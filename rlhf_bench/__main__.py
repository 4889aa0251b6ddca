"""`python -m rlhf_bench` and the `rlhf-bench` command."""

from rlhf_bench.cli.main import main

if __name__ == "__main__":
    main()
