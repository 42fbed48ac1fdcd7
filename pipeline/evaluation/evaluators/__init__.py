"""One file for each evaluator. A new measure or evaluator is added here; no other file names it."""
