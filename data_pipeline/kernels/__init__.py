"""Numba kernels over Arrow UTF-8 buffers.

They release the GIL, take no Python object, and are compiled once a machine and version (`governance.kernels.compiled`
says how). Importing one loads numba (about a second), so stages import them inside the functions that run them.
"""

import governance.kernels.compiled  # noqa: F401  # its clock counts the compilation of every kernel here
