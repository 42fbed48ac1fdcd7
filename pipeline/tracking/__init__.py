"""MLflow, and nothing else of the pipeline knows it: runs, lineage, registry, and how a registered model is served.

    lineage     which commit, files, versions and machine
    outbox      the local record of a run, and its delivery; what a dead server missed is sent later from here
    runs        one training = one run, from its first start to its true end
    registry    a model's versions and aliases
    served      the model as MLflow loads and serves it; copied into each version

MLflow is imported where it is used, since most stages should start fast.
"""
