"""Retraining on new pictures, usually every night.

incoming              new pictures at ``retrain.watch``
quality               checks of the new pictures
drift                 statistical tests of the new pictures against the known ones
workspace             the git worktree in which new models are trained; commits and branches
champion_challenger   comparison of champions and challengers
gates                 the conditions for a promotion
journal               the current retraining and the past ones, on disk
retrain               one retraining from start to end
report                the result as a page and as text
notifications         JSON to an address or a command
schedule              cron and systemd
settings              the section ``retrain`` of params.yaml
"""
