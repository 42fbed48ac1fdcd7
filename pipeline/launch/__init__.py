"""Run a training under Ray Train: in this process, on local workers, or on a cluster."""
