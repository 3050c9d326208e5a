"""Classifiers with a proved l2 radius for every image.

>>> import raycrt
>>> certifier = raycrt.Certifier(network)      # proves the curvature of every margin, once
>>> certificates = certifier(images)           # radius, prediction, binding class, status
"""

from raycrt.certify import Certificates, Certifier, Status
from raycrt.errors import InvalidInput
from raycrt.network import Network

__all__ = ["Certificates", "Certifier", "InvalidInput", "Network", "Status"]
