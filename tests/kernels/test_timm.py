"""Without timm, its adapter says how to get it; with it, tests/parity/test_timm_attention.py."""

import importlib
import importlib.util

import pytest

from zoo.errors import ZooError


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_without_timm():
    with pytest.raises(ZooError, match=r"pip install 'positionzoo\[timm\]'"):
        importlib.import_module("zoo_kernels.timm")
