"""Lower bounds on margins on a ball, from quadratic enclosures of every hidden layer.

On the ball |u| <= R around x0, each layer k is enclosed, entry by entry, by

    z_k(x0 + u) = c_k + J_k u + e_k,    |e_k| <= eps_k,

with numbers c_k, a matrix J_k and an error e_k that depends on u. An activation is replaced by a
quadratic in d = z_k - c_k = J_k u + e_k, with a rest that is proved on the interval of z_k:

    s(z_k) = a_k + g_k d + q_k d^2 + rest,    |rest| <= w_k.

So c_{k+1} = W a_k + b, J_{k+1} = W diag(g_k) J_k, and the error is the sum over all layers below

    e_k = sum_{i<k} G_ki (q_i d_i^2 + rest_i),    G_ki = W_k diag(g_{k-1}) W_{k-1} ... W_{i+1},

in which signs cancel before anything is bounded. The squares are those of linear forms in u, whose
sums are quadratic forms (`raycrt.bounds.enclosure.forms`), up to terms with errors from below. The
last layer is the margin itself: its c less R |J| less eps bounds it from below on the ball.

Curvature bounds multiply the norms of all layers; here only remainders of second and third order
are bounded, each with the signs of the layers above it. It is a Taylor model (Makino & Berz 2003)
of degree 2 in the margins and of degree 1 in the layers, with fitted coefficients.
"""

from raycrt.bounds.enclosure.forms import leading_directions
from raycrt.bounds.enclosure.network import Layer, NetworkEnclosure

__all__ = ["Layer", "NetworkEnclosure", "leading_directions"]
