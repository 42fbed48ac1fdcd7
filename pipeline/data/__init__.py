"""From a source's published bytes to hashed, memory-mapped splits.

settings -> sources, folders -> transfer, download -> archives, formats, images, decoding -> collection, splits, shards -> preprocess;
dataset reads what preprocess wrote, and is all that training and evaluation see.
"""
