"""Everything that calls MLflow: runs, lineage, the model registry, and how a registered model is served.

    connection      the client, the experiment, the default database
    delivery_queue  the local record of each run, kept until it is delivered
    delivery        sending a record to MLflow
    runs            one training = one run, from its first start to its final status; sync
    run_description the params, tags, name and note of a run
    restored        runs of stages that DVC restored from its cache without running them
    rerun           the commands that repeat a run
    run_notes       what a retraining did, as a note on its parent run
    lineage         commit, file hashes, versions and machine of a run
    system          usage of processors, memory, disk, network and GPUs during a training
    moved           a project whose folder was moved or copied
    registry        a model's versions, aliases and results
    model_card      a version's description
    pyfunc_model    the model as MLflow loads and serves it; copied into each version
    promotion       moving the alias ``champion``
    run_comparison  several trainings compared; several seeds summarised
    dvc_lock        what was made from what, by DVC's records
    trace           the lineage of a file, run or version, verified by hash
    trace_tree      the same as text, JSON or a Mermaid flowchart
    mlflow_index    the runs and versions that ``trace`` and ``verify`` need
    reproduce       training a registered model again

MLflow is imported inside functions, because most stages should start fast.
"""
