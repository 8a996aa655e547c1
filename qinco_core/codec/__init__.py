"""The quantizer: network, reference encoder, engine, packing."""
