"""One training loop for every model: the step, the schedule, the checkpoint, and Ray Train around them."""
