"""`make chaos`: faults into a run's own processes while it runs; it must survive them and end as one without them."""
