"""Download a data source and preprocess it into hashed shards of train, validation and test.

Modules: settings -> sources, folders -> transfer, download -> archives, formats, images, decoding ->
collection, splits, shards -> preprocess. Training and evaluation read the result with
``pipeline/core/dataset.py``.
"""
