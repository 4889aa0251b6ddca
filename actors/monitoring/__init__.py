"""What a running cluster shows: Ray metrics, load of the nodes, traces."""
