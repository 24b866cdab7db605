"""Networks, distribution heads, normalisers and the optimiser over flat parameters that the algorithms share."""
