"""MLflow, and nothing else of the pipeline knows it: runs, lineage, registry, and how a registered model is served.

    lineage      which commit, files, versions and machine
    outbox       the local record of a run, and its delivery; what a dead server missed is sent later from here
    runs         one training = one run, from its first start to its true end
    rerun        how a run can be made again: its commit, and params that were not the commit's
    moved        a project in another folder than before
    restored     runs of stages that DVC restored without running them
    system       what a training asks of its machine
    registry     a model's versions and aliases, and what was measured of them
    model_card   what a version is, in words
    served       the model as MLflow loads and serves it; copied into each version
    promotion    moving the alias that serves
    comparison   runs laid side by side, seeds summed up
    ledger       who made what of what, as DVC wrote it down
    trace        from any thing up to its sources and down to its uses, verified
    reproduce    a registered model made again

MLflow is imported where it is used, since most stages should start fast.
"""
