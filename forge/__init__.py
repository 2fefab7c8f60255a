"""forge: adapt language models on your own machine, and trust which one is best.

Importing the package puts a fast CPU BLAS in place (see forge.blas), which has to happen before mlx is first imported.
It imports nothing heavy.
"""

from forge import blas

__version__ = "0.1.0"

blas.prepare()
