# SPDX-License-Identifier: Apache-2.0
"""The chart's values as models, and what is written of them: values.yaml, its schema and the README's table."""
