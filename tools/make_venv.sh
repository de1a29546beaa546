#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes or refreshes a virtual environment: tools/make_venv.sh PYTHON FOLDER REQUIREMENTS.
set -euo pipefail
python=$1 venv=$2 requirements=$3

"$python" - <<'CHECK'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Ferry needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; choose another: make PYTHON=...")
CHECK
# A venv whose interpreter is gone, or whose creation was interrupted, is made anew.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
