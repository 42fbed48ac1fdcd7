"""Variants of the autoencoder."""

VARIANTS = {
    "dense": {"architecture": "dense"},
    "l1": {"reconstruction_loss": "l1", "architecture": "dense"},
    "huber": {"reconstruction_loss": "huber"},
    "ssim": {"reconstruction_loss": "ssim"},
    "noisy": {"input_noise": 0.2, "architecture": "dense"},
    "contractive": {"penalty": "contractive", "architecture": "dense"},
    "contractive_convolutional": {"penalty": "contractive"},
    "sparse": {"penalty": "sparse", "reconstruction_loss": "l1"},
    "mixture": {"prior": "mixture", "num_components": 3, "code_size": 4},
    "held_out": {"held_out_class": 1, "prior": "mixture", "code_size": 4},
    "all_objectives": {
        "objectives": ["reconstruct", "denoise", "inpaint", "upscale"],
        "input_noise": 0.25,
    },
    "private": {"prior": "none", "privacy": {"epsilon": 8.0}},
    "unet": {"architecture": "unet", "width": 8, "objectives": ["denoise", "inpaint"], "input_noise": 0.25},
}
