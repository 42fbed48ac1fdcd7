"""Retraining on new data as one transaction, usually every night.

incoming     pictures at the watched place that are not accepted yet
quality      checks of the new pictures
drift        statistical tests of the new pictures against the known ones
intake_report       these three, for one delivery
workspace    the git worktree in which new models are trained; commits and branches
champion_challenger      champion and challenger, measured in the same way
gates        the conditions for a promotion
journal      the state of the current retraining and the past ones, on disk
retrain      the transaction
report       the result as a page and as text
notifications       notifications
schedule     cron and systemd
settings     the section ``retrain`` of params.yaml
"""
