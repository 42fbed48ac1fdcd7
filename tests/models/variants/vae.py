"""Variants of the variational autoencoder."""

VARIANTS = {
    "dense": {"architecture": "dense", "dense": [24, 12]},
    "gaussian": {"likelihood": "gaussian"},
    "learned_deviation": {"likelihood": "gaussian", "learn_deviation": True, "architecture": "dense"},
    "warm_up": {"kl_warmup_steps": 3, "beta": 2.0},
    "free_bits": {"free_bits": 0.1, "prior": "standard"},
    "standard": {"prior": "standard"},
    "mixture": {"prior": "mixture", "num_components": 3, "latent_size": 4},
    "second_stage": {"second_stage": "vae", "latent_size": 4},
    "second_stage_later": {
        "second_stage": "vae",
        "second_stage_first": 2,
        "prior": "standard",
        "architecture": "dense",
        "likelihood": "gaussian",
        "learn_deviation": True,
    },
}
