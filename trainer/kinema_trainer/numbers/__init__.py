# SPDX-License-Identifier: Apache-2.0
"""What people see of a run: its steps in numbers, its processes' pace, its profile."""
