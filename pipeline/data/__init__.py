"""Download a data source and preprocess it into hashed shards of train, validation and test.

Modules: settings -> images, folders -> formats, sources -> transfer, download -> decoding, collection,
splits, shards -> preprocess. Training and evaluation read the result with
``pipeline/core/dataset.py``.
"""
