"""`darkroom inspect`: what a folder of pictures holds, and whether it can be trained on."""
