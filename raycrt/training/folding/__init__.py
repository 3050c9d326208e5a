"""Networks that are trained in place of the whole network and then folded back into it.

For speed, a network can be trained on principal coordinates of the images (`subspace`). A network
that does not tell left from right has tied weights in training (`symmetry`). A deeper network is
made from a shallower one by isometries in front (`isometries`), and a wider one is the mean of a
narrower one over small shifts of the image (`shifts`).
"""
