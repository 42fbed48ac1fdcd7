"""Building blocks that several models use. They import nothing but pipeline/core."""
