"""Whether, when and why a model is replaced by a newer one: one transaction, every night.

incoming     pictures at the watched place that are not accepted yet
quality      which of them are fit to be learnt from
drift        whether they come from where the known ones came
survey       these three, asked of today's delivery
workspace    the git worktree where a candidate is made; the project's branch and commit
contest      champion and challenger, measured alike
gates        whether a challenger may take the champion's place
journal      what was decided so far, and history
retrain      the transaction
report       what it found and decided, for people
notice       whom it tells
schedule     cron and systemd
"""
