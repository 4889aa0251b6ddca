"""`make chaos`: faults in the processes of a run. It must survive them, and end with the results of a run without faults."""
