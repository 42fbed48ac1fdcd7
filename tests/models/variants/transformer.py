"""Variants of the Transformer."""

SMALL = {"width": 16, "depth": 2, "heads": 2}
PIXELS = SMALL | {"tokens": "pixels", "levels": 4}
VARIANTS = {
    "codes": SMALL | {"dropout": 0.2},
    "codes_rotary": SMALL | {"positions": "rotary", "label_dropout": 0.0},
    "codes_tied": SMALL | {"tied": True, "top_k": 5, "temperature": 0.8},
    "codes_unconditional": SMALL | {"conditional": False, "top_p": 0.9},
    "pixels": PIXELS,
    "pixels_rotary": PIXELS | {"positions": "rotary", "dropout": 0.2},
    "pixels_tied": PIXELS | {"tied": True, "levels": 256, "top_p": 0.9, "top_k": 20},
    "pixels_unconditional": PIXELS | {"conditional": False},
}
