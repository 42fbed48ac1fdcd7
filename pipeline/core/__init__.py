"""All code that determines the weights of a trained model, besides the model's own file."""
