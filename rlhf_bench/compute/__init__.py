"""What work costs and where it fits: ledger, engine time, forecast, memory, cluster resources, Kubernetes."""
