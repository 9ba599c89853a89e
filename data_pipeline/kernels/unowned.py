"""An array as a kernel reads it fast: without its owner.

numba counts references to an array's owner when the array is handed to an inlined function that has branches; in a
loop over words that costs more than the work. A view without an owner has nothing to count.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic


@intrinsic
def unowned(typing_context: Any, array: Any) -> Any:
    """The same array without its owner.

    Valid as long as the owner lives, which the caller's argument ensures.

    Called inside a kernel on its arguments; what it gives must not be returned from the kernel.
    """
    if not isinstance(array, types.Array):
        return None

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = context.get_constant_null(types.voidptr)
        return view._getvalue()

    return array(array), build
