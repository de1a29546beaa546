# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Where the tests with PyTorch run: every test that asks for `device` runs on the CPU and, where there are some, on
GPUs."""

import pytest
import torch
from ranks import DEVICES

torch.set_num_threads(1)  # ranks are threads; PyTorch's own would fight them for cores


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
