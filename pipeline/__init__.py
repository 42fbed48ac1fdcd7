"""Darkroom: image data in, trained and measured models out, each number traceable to its bytes.

    errors, files      clear refusals; whole files or none
    params             params.yaml -> frozen, validated sections
    environment        what is not the experiment: workers, devices, Ray, storage, tracking addresses
    noise              randomness as a pure function of (seed, step, name)
    pictures           images as PNG grids
    process            how a process of ours starts and ends
    data/              catalogue, download, formats, preprocessing, memory-mapped splits
    models/            the contract (task.py) and one file for each model
    training/          one loop for every model, checkpoints, Ray Train
    evaluation/        measures with floors and intervals, and the report
    tracking/          MLflow: runs, lineage, registry
    retraining/        new pictures in, a better model out, or a reason why not
    cli/, doctor, repro    the `darkroom` command; `dvc repro` with independent stages side by side

Flow, one way: cli, stages -> retraining -> training, evaluation -> models, data, tracking -> noise, params, environment, pictures, process
-> files, errors. A test reads the imports.
"""
