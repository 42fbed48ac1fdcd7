"""Everything that calls MLflow: runs, lineage, the model registry, and how a registered model is served.

    runs             one training = one run, from its first start to its final status
    run_description  params, tags, name and note of a run
    delivery_queue   the records of runs on disk
    delivery         sending a record to MLflow
    connection       client, experiment, default database
    restored         runs of stages that DVC restored without running them
    lineage          commit, file hashes, versions and machine of a run
    rerun            the commands that repeat a run
    run_notes        the note of a retraining on its parent run
    system           system metrics during a training
    moved            a project whose folder was moved
    registry         versions, aliases and results of a model
    model_card       a version's description
    pyfunc_model     the model as MLflow serves it; copied into each version
    promotion        moving the alias ``champion``
    run_comparison   trainings compared, seeds summarised
    dvc_lock         what was made from what, by DVC's records
    mlflow_index     the runs and versions in MLflow, for trace
    trace            the lineage of a file, run or version, verified by hash
    trace_tree       its output as text, JSON or a flowchart
    reproduce        training a registered model again

MLflow is imported inside functions, because most stages should start fast.
"""
