"""Download a data source and preprocess it into hashed shards of train, validation and test.

Modules: settings, findings, split_names -> archives, arrays, images -> folders, labels, class_folders ->
reading -> formats, sources -> transfer, download -> decoding, collection, splits, shards, near_duplicates,
fonts -> preprocess. Training and evaluation read the result with
``pipeline/core/dataset.py``.
"""
