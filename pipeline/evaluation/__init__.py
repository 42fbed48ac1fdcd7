"""What the trained models are worth: measures that name their protocol, with intervals and floors, and the report."""
