from __future__ import annotations

import pytest

from governance.errors import PipelineError
from pretrain.engine import foreign_errors


def test_a_full_device_is_told_with_the_mend():
    import torch

    with pytest.raises(PipelineError, match="micro_batch_size"), foreign_errors():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="our own"), foreign_errors():
        raise RuntimeError("our own mistake")
