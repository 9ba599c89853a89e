"""Numba kernels over Arrow UTF-8 buffers.

They release the GIL, take no Python object, and are compiled once per machine and version (how:
`governance.kernels.compiled`). Importing one loads numba (about a second), so stages import them inside the functions
that run them.
"""

import governance.kernels.compiled  # noqa: F401  # its clock counts the compilation of every kernel here
