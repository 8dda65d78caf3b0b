"""See and change cross-attention while a UNet runs, whatever its processor and however it is compiled."""
