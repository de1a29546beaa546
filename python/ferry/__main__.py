# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m ferry``: the version, and what this build can do on this machine."""

import ferry


def main() -> None:
    print(f"ferry {ferry.__version__}")
    for capability in ferry.capabilities():
        print(f"  {'yes' if capability.usable else 'no ':3}  {capability.name}: {capability.detail}")
        if not capability.usable and capability.fix:
            print(f"       fix: {capability.fix}")


if __name__ == "__main__":
    main()
