"""All cases of bad input, by group."""

from tests.bad_input import archives, folders, idx, params, pictures, pixels, processed

GROUPS = {
    "params": params,
    "folders": folders,
    "archives": archives,
    "pictures": pictures,
    "pixels": pixels,
    "IDX": idx,
    "processed": processed,
}
