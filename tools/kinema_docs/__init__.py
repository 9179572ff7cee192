# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures of docs/ that follow from something else."""
