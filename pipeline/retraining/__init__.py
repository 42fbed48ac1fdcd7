"""Whether, when and why a model is replaced by a newer one."""
