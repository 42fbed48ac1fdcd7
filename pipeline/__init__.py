"""Darkroom: image data in; trained, measured and served models out.

    core/          all that the bits of a model depend on: the contract between a model and the rest
                   (task.py), the fields of an example, noise, data sets, sampler, step, loop, checkpoints
    layers/        networks, augmentation and other parts that several models use
    models/        one file or folder for each model; a new model is added here
    data/          sources, download, folders of pictures, preprocessing
    launch/        where and how a training runs; Ray Train is started in ray_train.py
    evaluation/    measures with floors and intervals, and the report; a new measure is added in one of the
                   files of evaluators/
    tracking/      MLflow: runs, lineage, registry; the only code that calls it
    retraining/    from new pictures to a better model
    inspection/    what a folder of pictures holds, and whether it can be trained on
    recipes/       settings for data sets, with what they reach: one YAML file for each
    search/        hyperparameter search on the validation split, with Optuna
    leaderboard/   variants of a model, trained with several seeds, in one table
    pull_request/  what a working tree changes in the models, as Markdown
    cli/           the `darkroom` command
    doctor, repro, settings_check
                   checks of an installation, `darkroom repro`, validation of params.yaml
    params, environment, openmp, process, git, files, errors, estimate, limits
                   settings, environment variables, threads, processes and the start of Ray, git, atomic
                   writes, error messages, measured values, cores and memory

A training stage depends on core/, layers/, its model's code, its data and its section of params.yaml.

No folder imports one above it: stages, cli, leaderboard, pull_request, doctor, repro -> retraining,
inspection, recipes, search, settings_check -> launch, evaluation -> tracking -> models -> data, layers ->
core -> params, environment, openmp, process, git -> files, errors, estimate, limits. A test reads the
imports.
"""
