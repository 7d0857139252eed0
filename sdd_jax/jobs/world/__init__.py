"""Jobs of the embedded world: its towers, CLIP, autoencoder and UNet; its directory and its evaluation."""
