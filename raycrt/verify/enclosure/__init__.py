"""Lower bounds on margins on a ball by enclosures of the hidden layers, proved a second time.

Let |u| <= R, and let z_k(x + u) be the numbers that enter the activations of layer k. With numbers
c_k and a matrix J_k, whatever these are, errors e_k = z_k - c_k - J_k u are defined. So are a_k,
g_k, q_k, whatever they are, with the rests

    h_k = s(z_k) = a_k + g_k d_k + q_k d_k^2 + rest_k,    d_k = z_k - c_k = J_k u + e_k.

Let c_{k+1} and J_{k+1} be `W a_k + b` and `W diag(g_k) J_k` as computed. What the computed numbers
miss, and the errors of W and b themselves, make r_{k+1}, and

    e_{k+1} = r_{k+1} + W (q_k d_k^2 + rest_k) + W diag(g_k) e_k.

Putting e_k, e_{k-1}, ... in its place gives, with G_{k, k-1} = W_k and G_{k, i} = G_{k, i+1}
diag(g_{i+1}) W_{i+1},

    e_k = r_k + sum_{i < k} G_{k, i} (q_i d_i^2 + rest_i + g_i r_i).

Rounding in G_{k, i} meets `q_i d_i^2 + rest_i + g_i e_i = h_i - a_i - g_i J_i u` and is bounded
with that. What is left are sums of w_l d_l^2 over the neurons l of all layers below, and with
d_l = t_l + e_l, t_l = J_l u,

    sum w d^2 = sum w t^2 + sum w (2 t e + e^2).

The first is a quadratic form in u, at most its norm times R^2 (`raycrt.verify.enclosure.forms`). In
the second, `b (2 t e + e^2) <= 2 b |t| |e| + b e^2` for b >= 0; and `-b (2 t e + e^2)` is at most
2 b |t| |e|, and at most b t^2, as (t + e)^2 >= 0. Sums of b |t| are again forms:

    (sum b |t|)^2 <= (sum b |J|) (sum b / |J| t^2).

A margin is one more row of this, the difference of two rows of the last W: it is at least its c
less R |J| less the bound on |e|. The bound on e from above counts, of both signs the larger.
"""

from raycrt.verify.enclosure.layers import Enclosure

__all__ = ["Enclosure"]
